"""The fake node stands beside the tests of this directory; those of the command line use it, too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
