"""DeepMask and SharpMask as standard PyTorch modules over :mod:`sharpmask_kernels`.

The names stand in ``__init__.pyi`` and are imported when they are first used, as in :mod:`sharpmask`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
