"""Marks of tests for packages that some Pythons lack. A skipped test is listed at the end of a run, with its reason."""

import importlib.util

import pytest

ENVLOGGER = pytest.mark.skipif(importlib.util.find_spec("envlogger") is None, reason="EnvLogger has no wheel here")
DM_CONTROL = pytest.mark.skipif(importlib.util.find_spec("dm_control") is None, reason="dm-control has no wheel here")
