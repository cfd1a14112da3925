"""How fast the ops are, next to plain PyTorch: see docs/benchmarks.md."""
