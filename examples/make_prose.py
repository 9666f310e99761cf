"""Makes a corpus of prose from the documentation in public packages, as JSONL, Parquet or plain text files.

    pip install lxml zstandard
    python examples/make_prose.py --out data/prose.jsonl.zst

Debian's manuals of Python (PSF), PostgreSQL (PostgreSQL), Perl (GPL or Artistic) and Linux (GPL-2; some pages are
Chinese, Japanese, Korean, Italian or Spanish), and Webster's dictionary of 1913 (GPL). A document is a page, or the
entries of the dictionary that begin with the same three letters; programs, tables, navigation and blocks of text that
stand on several pages of a manual are left out. 75 MB are downloaded once; 6,592 documents with 68 million characters
take half a minute.
"""

import argparse
import gzip
import html
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from packages import debian_package, finished_at
from reading import read_page
from rich.progress import track

REPEATED = 4
"""A block that stands on so many pages of a manual is not about any of them."""

SHORTEST_DOCUMENT = 500
"""Characters."""

SENTENCE = 60
"""A block of so many characters is a paragraph, not a heading or a list's entry. Most of a document must be such."""

ESCAPES = {"lt": "\ue000", "gt": "\ue001", "verbar": "|", "sol": "/"}
"""Names in Perl's documentation; private characters keep an escaped bracket from being taken for a code's."""

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


@dataclass(frozen=True)
class Document:
    """A document's name in the corpus, and its paragraphs."""

    id: str
    blocks: list[str]

    @property
    def text(self) -> str:
        """The paragraphs with blank lines between them."""
        return "\n\n".join(self.blocks)


def html_manual(package: str, folder: str, skip: str) -> Callable[[Path], Iterator[Document]]:
    """A manual of HTML pages; ``skip`` is the XPath of what is not text."""
    nowhere = "//pre | //table | //a[@class='headerlink'] | //*[@role='navigation']"

    def read(downloads: Path) -> Iterator[Document]:
        root = debian_package(package, downloads) / folder
        for file in track(sorted(root.rglob("*.html")), package):
            blocks = read_page(file.read_bytes(), skip=f"{nowhere} | {skip}")
            yield Document(f"{package}/{file.relative_to(root)}", [block for block in blocks if isinstance(block, str)])

    return read


def perl(downloads: Path) -> Iterator[Document]:
    """Perl's manual, from its POD files; its table of contents repeats their headings."""
    root = debian_package("perl-doc", downloads)
    files = [file for file in sorted(root.rglob("*.pod")) if file.stem != "perltoc"]
    for file in track(files, "perl-doc"):
        text = file.read_bytes().decode("utf-8", errors="replace")
        yield Document(f"perl-doc/{file.stem}", list(pod_paragraphs(text)))


def pod_paragraphs(text: str) -> Iterator[str]:
    """Headings and paragraphs of Perl's documentation format, without its codes; indented programs are left out."""
    hidden = False
    for paragraph in re.split(r"\n\s*\n", text):
        command = re.match(r"=(\w+)\s*", paragraph)
        if command:
            hidden = command[1] == "begin" or (hidden and command[1] != "end")
            if not re.fullmatch(r"head\d|item", command[1]):
                continue
            paragraph = paragraph[command.end() :]
        if not hidden and paragraph[:1].strip() and (plain := plain_pod(paragraph)):
            yield plain


def plain_pod(text: str) -> str:
    """A paragraph's words: ``B<bold>``, ``L<text|page>`` and ``E<eacute>`` become what a reader sees."""

    def shown(code: re.Match[str]) -> str:
        letter, content = code[1], (code[2] or code[3]).strip()
        if letter == "E":
            return ESCAPES.get(content) or html.unescape(f"&{content};")
        if letter == "L":
            return content.split("|")[0].lstrip("/").strip('"')
        return "" if letter in "XZ" else content

    # Codes nest; the innermost go first.
    pattern = re.compile(r"([A-Z])(?:<<+\s+((?:(?!>>).)*?)\s+>>+|<([^<>]*)>)", re.DOTALL)
    while pattern.search(text):
        text = pattern.sub(shown, text)
    return " ".join(text.replace(ESCAPES["lt"], "<").replace(ESCAPES["gt"], ">").split())


def dictionary(downloads: Path) -> Iterator[Document]:
    """The Collaborative International Dictionary of English."""
    (file,) = debian_package("dict-gcide", downloads).rglob("gcide.dict.dz")
    text = gzip.decompress(file.read_bytes()).decode("utf-8", errors="replace")
    entries = [entry for entry in re.split(r"\n(?=\S)", text) if not entry.startswith("00-database")]

    def page(entry: str) -> str:
        return re.sub(r"[^a-z]", "", entry[:20].lower())[:3]

    for number, (name, group) in enumerate(groupby(track(entries, "dict-gcide"), page)):
        yield Document(f"dict-gcide/{number:05d}-{name}", list(filter(None, map(plain_entry, group))))


def plain_entry(entry: str) -> str:
    """An entry in one paragraph, without its source, pronunciation and the braces of its references."""
    source = r"\[[^\[\]]*(?:Webster|WordNet|PJC|Century)[^\[\]]*\]"
    # The last source is followed by the next entry's headword.
    entry = re.sub(rf"({source})[^\n\[\]]*$", r"\1", entry.rstrip())
    entry = re.sub(rf"{source}|\\[^\\]*\\|[{{}}]", "", entry)
    return re.sub(r" (?=[,.;])", "", " ".join(entry.split()))


SPHINX = (
    "//*[@role='contentinfo' or @role='search' or @role='note'] | //footer | //div[@class='mobile-nav' or"
    " @class='sphinxsidebar' or @class='related' or @class='footer' or contains(@class, 'wy-side') or"
    " contains(@class, 'toctree')] | //*[contains(concat(' ', @class, ' '), ' contents ')]"
)
DOCBOOK = "//div[@class='navheader' or @class='navfooter' or @class='toc']"
SOURCES = {
    "python": html_manual("python3.11-doc", "usr/share/doc/python3.11/html", SPHINX),
    "postgresql": html_manual("postgresql-doc-15", "usr/share/doc/postgresql-doc-15/html", DOCBOOK),
    "perl": perl,
    "linux": html_manual("linux-doc-6.1", "usr/share/doc/linux-doc-6.1/html", SPHINX),
    "dictionary": dictionary,
}


def without_repeats(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents without the blocks that several of them have; short ones and mere lists are left out."""
    kept = list(documents)
    pages = Counter(block for document in kept for block in set(document.blocks))
    for document in kept:
        blocks = [block for block in document.blocks if pages[block] < REPEATED]
        size = sum(map(len, blocks))
        if size >= SHORTEST_DOCUMENT and sum(len(block) for block in blocks if len(block) >= SENTENCE) > 0.6 * size:
            yield Document(document.id, blocks)


def write(documents: Sequence[Document], out: Path, name: str) -> None:
    """Writes the corpus to ``out`` in the format that the suffix of ``name`` says."""
    if name.endswith(".parquet"):
        columns = {"id": [document.id for document in documents], "text": [document.text for document in documents]}
        pq.write_table(pa.table(columns), out, row_group_size=1000, compression="zstd")
    elif not name.endswith(SUFFIXES):
        for document in documents:
            file = out / f"{document.id}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(document.text + "\n", encoding="utf-8")
    else:
        with opened(out, name) as lines:
            for document in track(documents, name):
                lines.write(json.dumps({"id": document.id, "text": document.text}, ensure_ascii=False) + "\n")


def opened(out: Path, name: str) -> io.TextIOBase:
    """A file to write text to, compressed as the suffix of ``name`` says."""
    if name.endswith(".gz"):
        return io.TextIOWrapper(gzip.GzipFile(out, "wb", mtime=0), encoding="utf-8")
    if name.endswith(".zst"):
        return zstandard.open(out, "wt", encoding="utf-8")
    return out.open("w", encoding="utf-8")


def main() -> None:
    """Reads the arguments and writes the corpus, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        nargs="+",
        help=f"files to write, ending in {', '.join(SUFFIXES)}; without a suffix, a folder of text files",
    )
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES), help="default: all")
    parser.add_argument("--downloads", type=Path, default=Path("data/downloads"), help="folder for the packages")
    arguments = parser.parse_args()
    for path in arguments.out:
        if path.suffix and not path.name.endswith(SUFFIXES):
            parser.error(f"{path} ends in none of {', '.join(SUFFIXES)}")
    missing = [out for out in arguments.out if not out.exists()]
    documents: list[Document] = []
    if missing:
        for source in arguments.sources:
            documents += without_repeats(SOURCES[source](arguments.downloads))
    for path in missing:
        with finished_at(path) as out:
            write(documents, out, path.name)
        print(f"{path}: {len(documents)} documents, {sum(len(d.text) for d in documents):,} characters")
    for path in arguments.out:
        if path not in missing:
            print(f"{path} is there already")


if __name__ == "__main__":
    main()
