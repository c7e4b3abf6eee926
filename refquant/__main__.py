"""`python -m refquant` is the same program as `refquant`."""

import sys

from refquant.cli import main

if __name__ == "__main__":
    sys.exit(main())
