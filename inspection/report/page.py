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
    parts = {
        "title": html.escape(f"{report.card.title}: a finished {report.content}"),
        "style": _file("page.css"),
        "library": library.replace("</script", "<\\/script"),
        # Without a time in the header the same directory gives the same page.
        "data": base64.b64encode(gzip.compress(data, mtime=0)).decode(),
        "script": _file("page.js"),
    }
    filled = _file("page.html")
    for name, part in parts.items():
        filled = filled.replace(f"<!--{name}-->", part, 1)
    return filled


def library() -> str:
    """Vega, Vega-Lite and vega-embed as one script. Raises ModuleNotFoundError without vl-convert-python."""
    script: str = importlib.import_module("vl_convert").javascript_bundle()
    return script


def _file(name: str) -> str:
    return (resources.files("gatokit.inspection.report") / name).read_text(encoding="utf-8")
