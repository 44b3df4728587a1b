"""Containers of named arrays: HDF5, NumPy and MATLAB; nothing is taken unchecked."""
