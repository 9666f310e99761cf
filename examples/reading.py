"""A page of HTML as people read it: blocks of text and images, in order."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote

from lxml import html

SKIPPED = {"head", "script", "style", "nav", "noscript", "template", "svg", "math", "audio", "video", "form", "button"}
BLOCKS = {
    *("address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "div", "dl", "dt"),
    *("fieldset", "figcaption", "figure", "footer", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main"),
    *("ol", "p", "pre", "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul"),
}


@dataclass(frozen=True)
class ImageLink:
    """An image on a page: its path relative to the page, and the words that stand in for it."""

    source: str
    alternative: str


def read_page(page: bytes, *, skip: str) -> list[str | ImageLink]:
    """The page's blocks of text and its images in reading order, without what the XPath ``skip`` finds.

    The page names its encoding; UTF-8 if it does not. A row of a table becomes one block, its cells divided by bars.
    """
    declared = re.search(rb"charset=[\"']?([\w-]+)", page[:2000])
    parser = html.HTMLParser(encoding=declared[1].decode() if declared else "utf-8", remove_comments=True)
    root = html.document_fromstring(page, parser=parser)
    for element in root.xpath(skip):
        element.drop_tree()
    body = root.find("body")
    return [] if body is None else list(_blocks(body))


def _blocks(element: html.HtmlElement) -> Iterator[str | ImageLink]:
    """What is inside an element, its runs of inline text joined."""
    inline: list[str] = []
    for part in _parts(element):
        if isinstance(part, str):
            inline.append(part)
            continue
        if text := _tidy("".join(inline)):
            yield text
        inline.clear()
        if isinstance(part, ImageLink):
            yield part
        elif part.tag == "pre":
            if text := part.text_content().strip("\n").rstrip():
                yield text
        elif part.tag == "tr":
            yield from _row(list(_blocks(part)))
        else:
            yield from _blocks(part)
    if text := _tidy("".join(inline)):
        yield text


def _parts(element: html.HtmlElement) -> Iterator[str | ImageLink | html.HtmlElement]:
    """Inline text, images and the block elements below an element, in order."""
    yield element.text or ""
    for child in element:
        if child.tag in BLOCKS:
            yield child
        elif child.tag == "img":
            if child.get("src"):
                yield ImageLink(unquote(child.get("src")), child.get("alt", ""))
        elif child.tag == "br":
            yield "\v"
        elif isinstance(child.tag, str) and child.tag not in SKIPPED:
            yield from _parts(child)
        yield child.tail or ""


def _row(blocks: list[str | ImageLink]) -> Iterator[str | ImageLink]:
    """A table's row as one line, unless there are images in it."""
    if any(isinstance(block, ImageLink) for block in blocks):
        yield from blocks
    elif blocks:
        yield " | ".join(str(block) for block in blocks)


def _tidy(text: str) -> str:
    """Text with the white space that a browser shows."""
    lines = (" ".join(line.split()) for line in text.split("\v"))
    return "\n".join(lines).strip()
