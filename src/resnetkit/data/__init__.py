"""Data: read data sets, decode and preprocess pictures, and put them into batches."""
