"""Models from ONNX and PyTorch."""
