"""Makes a corpus of pages with text and images in reading order, as MMC4 or as OBELICS has them, from a public package.

    pip install lxml
    python examples/make_pages.py --format mmc4 --out data/pages

Debian's gimp-help-en (GFDL): the manual of GIMP. A page of the corpus is a page of the manual that has images, without
its navigation and the icons of notes and tips: 481 pages with 2,263 images. 50 MB are downloaded once, a corpus has
50 MB and takes a second.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from packages import debian_package, finished_at
from reading import ImageLink, read_page
from rich.progress import track

FOLDER = "usr/share/gimp/2.0/help/en"
SKIP = (
    "//div[@class='navheader' or @class='navfooter' or @class='toc' or @class='index']"
    " | //table[@summary='Note' or @summary='Tip' or @summary='Warning' or @summary='Caution' or @summary='Important']"
    "//img[starts-with(@alt, '[')]"
)


@dataclass(frozen=True)
class Page:
    """A page's file and its blocks, in reading order."""

    file: Path
    blocks: list[str | ImageLink]

    @property
    def url(self) -> str:
        """Names the page in the corpus."""
        return f"gimp-help-en/{self.file.name}"

    def image(self, link: ImageLink) -> Path:
        """The file of one of the page's images."""
        return self.file.parent / link.source

    def image_url(self, link: ImageLink) -> str:
        """Names one of the page's images."""
        return f"gimp-help-en/{link.source}"


def read_pages(folder: Path) -> list[Page]:
    """The manual's pages that have images, by name."""
    pages = []
    for file in track(sorted(folder.glob("*.html")), "reading pages"):
        blocks = read_page(file.read_bytes(), skip=SKIP)
        blocks = [block for block in blocks if isinstance(block, str) or (file.parent / block.source).is_file()]
        if any(isinstance(block, ImageLink) for block in blocks):
            pages.append(Page(file, blocks))
    return pages


def write_mmc4(pages: Sequence[Page], out: Path) -> None:
    """``docs_shard_0_v2.jsonl``, and the images in ``images/`` under the names that it gives them.

    An image is matched to the block after it (to the last one, where none follows): a reader puts it before that
    block. The manual itself puts it there, so the similarity of the match is 1.
    """
    (out / "images").mkdir()
    with (out / "docs_shard_0_v2.jsonl").open("w", encoding="utf-8") as lines:
        for page in track(pages, "mmc4"):
            texts = [block for block in page.blocks if isinstance(block, str)]
            images: list[dict[str, Any]] = []
            seen = 0
            for block in page.blocks:
                if isinstance(block, str):
                    seen += 1
                    continue
                source = page.image(block)
                name = hashlib.sha256(block.source.encode()).hexdigest()[:12] + source.suffix
                if not (out / "images" / name).exists():
                    shutil.copyfile(source, out / "images" / name)
                images.append(
                    {
                        "image_name": name,
                        "raw_url": page.image_url(block),
                        "matched_text_index": min(seen, len(texts) - 1),
                        "matched_sim": 1.0,
                        "face_detections": None,
                    }
                )
            matrix = [[float(index == image["matched_text_index"]) for index in range(len(texts))] for image in images]
            document = {
                "text_list": texts,
                "url": page.url,
                "image_info": images,
                "similarity_matrix": matrix,
                "could_have_url_duplicate": 0,
            }
            lines.write(json.dumps(document, ensure_ascii=False) + "\n")


def write_obelics(pages: Sequence[Page], out: Path) -> None:
    """Parquet with the images' bytes inside, as OBELICS' own code stores them after the download.

    ``images`` and ``texts`` are lists of one length, and at each index one of them is null; ``images`` has Hugging
    Face's struct of bytes and path. ``metadata`` and ``general_metadata`` are JSON.
    """
    string = {"dtype": "string", "_type": "Value"}
    features = {
        "images": {"feature": {"_type": "Image"}, "_type": "List"},
        "images_urls": {"feature": string, "_type": "List"},
        "metadata": string,
        "general_metadata": string,
        "texts": {"feature": string, "_type": "List"},
    }
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [
            ("images", pa.list_(image)),
            ("images_urls", pa.list_(pa.string())),
            ("metadata", pa.string()),
            ("general_metadata", pa.string()),
            ("texts", pa.list_(pa.string())),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    with pq.ParquetWriter(out / "train-00000-of-00001.parquet", schema) as writer:
        for begin in track(range(0, len(pages), 20), "obelics"):
            rows = [obelics_row(page) for page in pages[begin : begin + 20]]
            writer.write_table(pa.Table.from_pylist(rows, schema))


def write_obelics_links(pages: Sequence[Page], out: Path) -> None:
    """Parquet as OBELICS is published, ``images`` being a list of strings: here paths of files in ``images/``."""
    strings = pa.list_(pa.string())
    schema = pa.schema(
        [("images", strings), ("metadata", pa.string()), ("general_metadata", pa.string()), ("texts", strings)]
    )
    rows = []
    for page in track(pages, "obelics"):
        row = obelics_row(page)
        row["images"] = [link and link.removeprefix("gimp-help-en/") for link in row.pop("images_urls")]
        rows.append(row)
        for link in filter(None, row["images"]):
            (out / link).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(page.file.parent / link, out / link)
    pq.write_table(pa.Table.from_pylist(rows, schema), out / "train-00000-of-00001.parquet", row_group_size=100)


def obelics_row(page: Page) -> dict[str, Any]:
    """A page as parallel lists; the blocks between two images are one text."""
    pieces: list[str | ImageLink] = []
    for block in page.blocks:
        if isinstance(block, str) and pieces and isinstance(pieces[-1], str):
            pieces[-1] += "\n\n" + block
        else:
            pieces.append(block)
    links = [None if isinstance(piece, str) else piece for piece in pieces]
    return {
        "images": [link and {"bytes": page.image(link).read_bytes(), "path": None} for link in links],
        "images_urls": [link and page.image_url(link) for link in links],
        "metadata": json.dumps(
            [link and {"src": page.image_url(link), "alt_text": link.alternative} for link in links]
        ),
        "general_metadata": json.dumps({"url": page.url}),
        "texts": [piece if isinstance(piece, str) else None for piece in pieces],
    }


WRITERS: dict[str, Callable[[Sequence[Page], Path], None]] = {
    "mmc4": write_mmc4,
    "obelics": write_obelics,
    "obelics-links": write_obelics_links,
}


def main() -> None:
    """Reads the arguments and writes the corpus, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--format", choices=WRITERS, default="mmc4", help="default: mmc4")
    parser.add_argument("--downloads", type=Path, default=Path("data/downloads"), help="folder for the package")
    arguments = parser.parse_args()
    if arguments.out.exists():
        print(f"{arguments.out} is there already")
        return
    pages = read_pages(debian_package("gimp-help-en", arguments.downloads) / FOLDER)
    with finished_at(arguments.out) as out:
        out.mkdir()
        WRITERS[arguments.format](pages, out)
    images = sum(isinstance(block, ImageLink) for page in pages for block in page.blocks)
    print(f"{arguments.out}: {len(pages)} pages, {images} images")


if __name__ == "__main__":
    main()
