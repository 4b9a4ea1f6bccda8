"""Give the tensors of any project this package's names, and find the network that has them."""
