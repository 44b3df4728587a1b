"""What is recorded on the trajectory, and which of it is kept."""
