"""Reading and writing measurements and images."""
