"""``python -m bench.gpu``: what a GPU is needed for, in one run of five stages (docs/gpu.md)."""
