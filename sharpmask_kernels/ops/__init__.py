"""One file for each op, to be read from top to bottom: arguments, checks, schema, fake, autograd, self-check.

:mod:`~sharpmask_kernels.ops.library` registers ops with PyTorch, :mod:`~sharpmask_kernels.ops.calling` has what their
public functions share.
"""
