"""Evaluation: what is counted, the one way to count it, and the report. It knows no training and no backend."""
