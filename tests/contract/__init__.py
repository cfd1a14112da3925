"""What every op means, tested on every backend that has it.

``oracle`` holds the formulas, in float64; ``inputs`` makes arguments of all kinds; ``subjects`` pairs ops with
backends. A new backend is tested by listing it in ``sharpmask_kernels.dispatch``: no test here names one. ``faults``
shows that the suite can fail.
"""
