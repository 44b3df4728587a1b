"""The embedding of time: its table, and its quantization."""
