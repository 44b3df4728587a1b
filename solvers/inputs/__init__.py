"""What comes from outside: how it is refused, how large it may be, and JSON of one meaning."""
