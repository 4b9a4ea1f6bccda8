"""How a training step is computed here: kernels or torch, the optimiser, and the memory that it needs."""
