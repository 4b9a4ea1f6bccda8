"""A server that predicts: POST /predict, the Open Inference Protocol, health and metrics."""
