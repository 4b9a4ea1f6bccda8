"""Measures of detectors: average precision as VOC and COCO define it, kinds of errors, and the best thresholds."""
