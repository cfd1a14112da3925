"""One module per backend, the same function names in each."""
