"""How fast the ops are, next to plain PyTorch (docs/benchmarks.md)."""
