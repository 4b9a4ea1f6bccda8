"""Tensors of any project under this package's names, and the network that has them."""
