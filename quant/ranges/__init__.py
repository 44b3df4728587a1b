"""Activation ranges: measured, and searched for."""
