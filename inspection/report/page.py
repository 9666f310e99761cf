"""A report as one HTML file that opens without a network: data, script, styles and Vega inside."""

import base64
import gzip
import html
import importlib
import json
from importlib import resources

from gatokit.inspection.report.data import Report


def page(report: Report, library: str) -> str:
    """The HTML of a report; ``library`` is the JavaScript that defines ``vegaEmbed``."""
    data = json.dumps(report.to_json(), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    # No time in the header: the same directory gives the same page.
    packed = base64.b64encode(gzip.compress(data, mtime=0)).decode()
    parts = {
        "title": html.escape(f"{report.card.title}: a finished {report.content}"),
        "style": _part("page.css"),
        "library": library.replace("</script", "<\\/script"),
        "data": packed,
        "script": _part("page.js"),
    }
    whole = _part("page.html")
    for name, part in parts.items():
        whole = whole.replace(f"<!--{name}-->", part, 1)
    return whole


def library() -> str:
    """Vega, Vega-Lite and vega-embed as one script, from the package vl-convert-python; ModuleNotFoundError without
    it."""
    script: str = importlib.import_module("vl_convert").javascript_bundle()
    return script


def _part(name: str) -> str:
    return (resources.files("gatokit.inspection.report") / name).read_text(encoding="utf-8")
