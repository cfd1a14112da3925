"""SharpMask: object masks from photos, refined top-down (Pinheiro, Lin, Collobert, Dollár, ECCV 2016).

The names stand in ``__init__.pyi``. Each is imported when it is first used, because importing PyTorch takes seconds
that a command line with a wrong option need not wait for.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
