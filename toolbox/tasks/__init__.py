"""The tasks of the command line: the user's files in, results out."""
