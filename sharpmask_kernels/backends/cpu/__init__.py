"""The C++ kernels of csrc/cpu."""
