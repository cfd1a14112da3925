"""The Triton kernels, one file per op. Importing one imports triton, so the backend imports them when an op runs."""
