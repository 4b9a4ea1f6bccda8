"""C++ kernels for operations that are slow in PyTorch on a CPU: built ahead, or compiled at the first use."""
