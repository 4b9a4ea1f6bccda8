"""C++ kernels for what PyTorch's operations leave slow on a CPU, compiled for this machine when first used."""
