"""Tests of what runs in a cloud, against stand-ins on loopback."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.google.fixtures import bucket, dataflow, impatient, private_key

__all__ = ["bucket", "dataflow", "impatient", "private_key"]
