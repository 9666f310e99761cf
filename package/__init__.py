"""Gatokit: the data side of a generalist agent, and a thin trainer.

The other folders of the repository are installed beside this file, as ``gatokit.schemas``, ``gatokit.loader`` and so
on.
"""

__version__ = "0.1.0"
