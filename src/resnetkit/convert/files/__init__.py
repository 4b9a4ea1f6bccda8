"""Files of weights, of any format, to tensors and plain values. No code in a file is ever run."""
