"""`python -m gpulockd` is the command `gpulockd`."""

import sys

from gpulockd.cli import main

if __name__ == "__main__":
    sys.exit(main())
