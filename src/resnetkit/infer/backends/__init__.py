"""OpenVINO, ONNX Runtime and torch behind one call, from a batch of uint8 pixels to the network's output."""
