"""CUDA on the host's side: the compiler of kernels, the driver, the child that builds libraries."""
