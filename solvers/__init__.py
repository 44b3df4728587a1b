"""Samplers, processes and the one loop that runs them."""
