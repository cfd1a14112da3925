"""One folder for each backend, the same names in each: ``device.py`` declares it, the others hold its kernels."""
