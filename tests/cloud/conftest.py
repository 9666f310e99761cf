"""Tests of what runs in a cloud, against stand-ins on loopback."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.google.fixtures import bucket, google_environment, impatient

__all__ = ["bucket", "google_environment", "impatient"]
