"""Pixels to what a network takes: preprocessing, augmentation, resizing."""
