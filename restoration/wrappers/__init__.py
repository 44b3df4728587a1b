"""Denoisers that ask another one several times: tiles, flips and turns."""
