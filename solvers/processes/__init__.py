"""Forward processes, and how one answers for another."""
