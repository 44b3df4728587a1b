"""ONNX graphs, bundles and sessions."""
