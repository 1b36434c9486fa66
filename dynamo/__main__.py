"""`python -m dynamo` is the command line `dynamo`."""

from __future__ import annotations

import sys

from dynamo.cli import main

if __name__ == "__main__":
    sys.exit(main())
