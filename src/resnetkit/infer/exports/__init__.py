"""Export: write a model as ONNX, OpenVINO or torch.export file, and compare the file with the model."""
