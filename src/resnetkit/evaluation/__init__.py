"""Evaluation: counting errors, merging counts, records of each picture, and the report. It does not import training."""
