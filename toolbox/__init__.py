"""Front door: command line, shipped models, training."""
