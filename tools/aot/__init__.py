"""Compile gates: what compilers make of the GPU kernels, for GPUs that need not be here."""
