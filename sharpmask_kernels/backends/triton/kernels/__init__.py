"""The Triton kernels, one file per op. Importing one imports triton; :mod:`sharpmask_kernels.backends.triton` does when
an op runs."""
