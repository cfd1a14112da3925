"""What GPU compilers make of the kernels, gated: nothing spilled, matrix units used, wide loads.

``python -m tools.aot`` compiles for GPUs that need not be here.
"""
