"""``python -m aitbcctl``: the same program as the ``aitbcctl`` script."""

import sys

from aitbcctl.cli import main

if __name__ == "__main__":
    sys.exit(main())
