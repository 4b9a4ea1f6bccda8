"""Transforms of pixels: preprocessing, augmentation and resizing."""
