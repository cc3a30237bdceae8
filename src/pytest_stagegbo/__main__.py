"""`python -m pytest_stagegbo`: the same as the script `stagegbo`."""

import sys

from pytest_stagegbo.cli import main

if __name__ == "__main__":
    sys.exit(main())
