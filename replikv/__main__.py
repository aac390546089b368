"""``python -m replikv``: the command line."""

import sys

from replikv.cli import main

if __name__ == "__main__":
    sys.exit(main())
