"""Tests of what runs in a cloud, against stand-ins on loopback."""

from tests.google.fixtures import bucket, dataflow, impatient, private_key

__all__ = ["bucket", "dataflow", "impatient", "private_key"]
