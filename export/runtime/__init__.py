"""Running a bundle: ONNX Runtime, OpenVINO."""
