import sys

from .triton import main

sys.exit(main())
