"""The reference: plain PyTorch and numpy."""
