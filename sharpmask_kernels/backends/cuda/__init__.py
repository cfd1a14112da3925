"""The CUDA kernels of csrc/cuda."""
