"""Changes of the network that make it easier to quantize; its outputs stay the same."""
