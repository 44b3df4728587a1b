"""Rounding of weights: GPTQ, AdaRound, reconstruction of blocks."""
