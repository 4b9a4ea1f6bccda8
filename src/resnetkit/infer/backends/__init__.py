"""Backends: OpenVINO, ONNX Runtime and torch compute the network's output for a batch of uint8 pixels."""
