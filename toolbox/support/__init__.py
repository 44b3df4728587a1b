"""What commands share, and commands about the machine."""
