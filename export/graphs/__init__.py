"""ONNX graphs: of a network, of a whole restoration, and what is done to them."""
