"""A finished build or scan as one page to look at: what is in, what is out, at which threshold."""

from gatokit.inspection.report.datasets import Shares
from gatokit.inspection.report.page import library, page, report

__all__ = ["Shares", "library", "page", "report"]
