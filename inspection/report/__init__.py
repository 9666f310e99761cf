"""A finished build or scan as one page to look at: what is in, what is out, at which threshold."""

from gatokit.inspection.report.data import Report, Shares, report
from gatokit.inspection.report.page import library, page

__all__ = ["Report", "Shares", "library", "page", "report"]
