"""Operators, measurements, posterior corrections and restoration tasks."""
