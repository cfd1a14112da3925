"""``python -m sharpmask.cli`` is the ``sharpmask`` command."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
