"""Where tests find the repository and the test data."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
DATA = Path(os.environ.get("KAIROS_TEST_DATA", ROOT.parent / "shared" / "data"))
