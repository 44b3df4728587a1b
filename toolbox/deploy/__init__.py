"""From a model to a proven bundle."""
