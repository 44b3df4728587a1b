"""What a graph of a whole restoration does, task by task."""
