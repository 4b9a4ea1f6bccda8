"""Read files of weights, in any format, as tensors and plain values. Code in a file is never run."""
