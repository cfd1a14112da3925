"""``python -m bench.photo``: the time and memory of a whole photo, beside peers and an earlier commit."""
