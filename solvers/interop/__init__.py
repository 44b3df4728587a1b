"""diffusers' schedulers, either way, and processes as plain data."""
