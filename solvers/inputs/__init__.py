"""What comes from outside: how it is refused, how large it may be, strict JSON, settings."""
