"""Inference: predict classes of pictures with a model file, export models, and make them fast on this machine."""
