"""The samplers, one paper to a file."""
