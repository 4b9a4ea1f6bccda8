"""C++ kernels for operations that are slow in PyTorch on a CPU. They are compiled for this machine at the first use."""
