"""Makes a corpus of pictures with captions, in the format of your choice, from two public packages.

    pip install lxml pillow pycocotools==2.0.11 webdataset==1.0.2
    python examples/make_captions.py --format webdataset --out data/captions

Debian's openclipart (6,900 PNG pictures in the public domain, titled by the people who drew them) and npm's
emoji-datasource-google (3,786 named emoji of 64x64 pixels, Apache-2.0). 230 MB are downloaded once; a corpus has 150
to 190 MB and takes ten seconds. The pictures are as people made them: with palettes, alpha, or gray, and three of more
than 200 megapixels.
"""

import argparse
import io
import json
import math
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from lxml import etree
from packages import debian_package, finished_at, npm_package
from PIL import Image
from rich.progress import track

from gatokit.environments.demo import img2dataset_row

Image.MAX_IMAGE_PIXELS = None
"""Two of the pictures have 623 million pixels; only their headers are read here."""

EMOJI = ("emoji-datasource-google", "16.0.0", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438")
GENERIC_TITLE = re.compile(r"clipart by |part of the ", re.IGNORECASE)
SHARED_TITLE = 4
"""A title or description that so many pictures have names their collection, not what they show."""

LARGEST_DECODED = 20_000_000
"""Pixels; larger pictures are left out where all are decoded."""


@dataclass(frozen=True)
class Picture:
    """A picture file with its captions, the best one first."""

    file: Path
    url: str
    captions: tuple[str, ...]
    license: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, from the header."""
        with Image.open(self.file) as image:
            return image.size


def openclipart(downloads: Path) -> Iterator[Picture]:
    """Clip art; its title and description are in the SVG drawing that each PNG was made from."""
    folder = debian_package("openclipart-png", downloads) / "usr/share/openclipart/png"
    drawings = debian_package("openclipart-svg", downloads) / "usr/share/openclipart/svg"
    files = [file for file in sorted(folder.rglob("*.png")) if not file.is_symlink()]
    titles, descriptions = {}, {}
    for file in track(files, "reading titles"):
        drawing = drawings / file.relative_to(folder).with_suffix(".svg")
        titles[file], descriptions[file] = work(drawing) if drawing.exists() else ("", "")
    title_uses, description_uses = Counter(titles.values()), Counter(descriptions.values())
    for file in files:
        title, description = titles[file], descriptions[file]
        if not title or title_uses[title] >= SHARED_TITLE or GENERIC_TITLE.match(title):
            title = title_from_name(file.relative_to(folder))
        described = description and description_uses[description] < SHARED_TITLE
        captions = dict.fromkeys([title, description] if described else [title])
        yield Picture(file, f"openclipart/{file.relative_to(folder)}", tuple(captions), "public domain")


def work(drawing: Path) -> tuple[str, str]:
    """Title and description in the RDF metadata of an SVG file; empty where it has none."""
    parser = etree.XMLParser(recover=True, huge_tree=True, resolve_entities=False, no_network=True)
    root = etree.parse(str(drawing), parser).getroot()

    def text(name: str) -> str:
        found = [] if root is None else root.xpath(f'.//*[local-name()="Work"]/*[local-name()="{name}"]')
        words = " ".join(" ".join(element.itertext()) for element in found).split()
        return " ".join(words)

    return text("title"), text("description")


def title_from_name(path: Path) -> str:
    """A caption from a file's name and folder: ``people/smilies/big_grin_01.png`` gives ``big grin, smilies``."""
    suits = {"c": "clubs", "d": "diamonds", "h": "hearts", "s": "spades"}
    ranks = {"a": "ace", "j": "jack", "q": "queen", "k": "king"}
    if star := re.fullmatch(r"star_(\d+)pt(\d+)step", path.stem):
        return f"star with {star[1]} points, step {int(star[2])}"
    if card := re.fullmatch(r"(\w+)_([cdhs])_(\w+)", path.stem):
        return f"playing card, {ranks.get(card[3], card[3])} of {suits[card[2]]}, {card[1]}"
    words = " ".join(re.sub(r"(_\d+[a-z]?)+$", "", path.stem).replace("_", " ").split())
    return f"{words}, {'icon' if 'icons' in path.parts else path.parent.name.replace('_', ' ')}"


def emoji(downloads: Path) -> Iterator[Picture]:
    """Emoji, captioned with their Unicode names, and a skin tone where they have one."""
    folder = npm_package(*EMOJI, downloads)
    tones = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
    for symbol in json.loads((folder / "emoji.json").read_text(encoding="utf-8")):
        name = (symbol["name"] or symbol["short_name"].replace("_", " ")).lower()
        for code, drawn in {"": symbol, **symbol.get("skin_variations", {})}.items():
            file = folder / "img/google/64" / drawn["image"]
            if drawn["has_img_google"] and file.exists():
                skin = " and ".join(tones[part] for part in code.split("-") if part in tones)
                caption = f"{name}, {skin} skin" if skin else name
                yield Picture(file, f"{EMOJI[0]}/{file.relative_to(folder)}", (caption,), "Apache-2.0")


def write_webdataset(pictures: Sequence[Picture], out: Path, encode: str, per_file: int) -> None:
    """Tars as img2dataset writes them: ``00000.tar`` with KEY.png, KEY.txt, KEY.json, and ``00000.parquet`` beside it.

    ``encode`` is the file type of every picture; PNG files are stored as they are.
    """
    from webdataset import TarWriter

    for shard, part in enumerate(parts(pictures, per_file)):
        rows = []
        with TarWriter(str(out / f"{shard:05d}.tar"), mtime=0) as tar:
            for index, picture in enumerate(track(part, f"{shard:05d}.tar")):
                key = f"{shard:05d}{index:04d}"
                data, caption = picture.file.read_bytes(), picture.captions[0]
                row = img2dataset_row(key, caption, picture.url, picture.size, data, license=picture.license)
                rows.append(row)
                image = data if encode == "png" else reencoded(data, encode)
                meta = json.dumps(row, indent=4)
                tar.write({"__key__": key, encode: image, "txt": caption, "json": meta})
        pq.write_table(pa.Table.from_pylist(rows), out / f"{shard:05d}.parquet")


def reencoded(data: bytes, encode: str) -> bytes:
    """The picture on white as JPEG or WebP."""
    with Image.open(io.BytesIO(data)) as image:
        drawn = image.convert("RGBA")
    flat = Image.new("RGB", drawn.size, "white")
    flat.paste(drawn, mask=drawn)
    buffer = io.BytesIO()
    flat.save(buffer, {"jpg": "JPEG", "webp": "WEBP"}[encode], quality=95)
    return buffer.getvalue()


def write_coco(pictures: Sequence[Picture], out: Path, encode: str, per_file: int) -> None:
    """COCO captions: ``annotations/captions_train.json`` and the pictures in ``train/``."""
    from pycocotools.coco import COCO

    (out / "train").mkdir()
    (out / "annotations").mkdir()
    names = sorted({picture.license for picture in pictures})
    images, annotations = [], []
    for number, picture in enumerate(track(pictures, "train"), start=1):
        file_name = f"{number:012d}.png"
        shutil.copyfile(picture.file, out / "train" / file_name)
        width, height = picture.size
        license_id = names.index(picture.license) + 1
        images.append(
            {
                "id": number,
                "file_name": file_name,
                "width": width,
                "height": height,
                "license": license_id,
                "coco_url": picture.url,
            }
        )
        for caption in picture.captions:
            annotations.append({"id": len(annotations) + 1, "image_id": number, "caption": caption})
    captions = {
        "info": {"description": "openclipart and emoji with their titles", "version": "1.0"},
        "licenses": [{"id": number, "name": name, "url": ""} for number, name in enumerate(names, start=1)],
        "images": images,
        "annotations": annotations,
    }
    file = out / "annotations" / "captions_train.json"
    file.write_text(json.dumps(captions), encoding="utf-8")
    assert len(COCO(str(file)).getImgIds()) == len(pictures)


def write_parquet(pictures: Sequence[Picture], out: Path, encode: str, per_file: int) -> None:
    """Parquet as Hugging Face's ``push_to_hub`` writes it: ``data/train-00000-of-NNNNN.parquet``, bytes embedded."""
    features = {
        "image": {"_type": "Image"},
        "caption": {"dtype": "string", "_type": "Value"},
        "url": {"dtype": "string", "_type": "Value"},
    }
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image_type), ("caption", pa.string()), ("url", pa.string())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    (out / "data").mkdir()
    files = parts(pictures, per_file)
    for number, part in enumerate(files):
        name = f"train-{number:05d}-of-{len(files):05d}.parquet"
        with pq.ParquetWriter(out / "data" / name, schema) as writer:
            for group in track(parts(part, 100), name):
                rows = [
                    {
                        "image": {"bytes": picture.file.read_bytes(), "path": picture.file.name},
                        "caption": picture.captions[0],
                        "url": picture.url,
                    }
                    for picture in group
                ]
                writer.write_table(pa.Table.from_pylist(rows, schema))


def write_tfds(pictures: Sequence[Picture], out: Path, encode: str, per_file: int) -> None:
    """A TFDS directory in ArrayRecord files: ``image`` holds the files' bytes, ``caption`` the text."""
    import tensorflow_datasets as tfds

    folder = out / "captions" / "1.0.0"
    folder.mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="captions", version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=""
    )
    features = {"image": tfds.features.Image(encoding_format="png"), "caption": tfds.features.Text()}
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=per_file, file_format="array_record")
    writer.initialize_splits(["train"])
    for part in track(parts(pictures, 100), "train"):
        rows = [{"image": str(picture.file), "caption": picture.captions[0]} for picture in part]
        writer.add_examples({"train": rows})
    writer.close_all()


def parts(pictures: Sequence[Picture], size: int) -> list[Sequence[Picture]]:
    """The pictures in runs of ``size``."""
    return [pictures[begin : begin + size] for begin in range(0, len(pictures), size)]


WRITERS: dict[str, Callable[[Sequence[Picture], Path, str, int], None]] = {
    "webdataset": write_webdataset,
    "coco": write_coco,
    "parquet": write_parquet,
    "tfds": write_tfds,
}


def main() -> None:
    """Reads the arguments and writes the corpus, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--format", choices=WRITERS, default="webdataset", help="default: webdataset")
    parser.add_argument("--encode", choices=["png", "jpg", "webp"], default="png", help="of tars; png copies the files")
    parser.add_argument("--per-file", type=int, default=1000, help="pictures a tar or Parquet file (default: 1000)")
    parser.add_argument("--pictures", type=int, help="stop after so many (default: all)")
    parser.add_argument("--downloads", type=Path, default=Path("data/downloads"), help="folder for the packages")
    arguments = parser.parse_args()
    if arguments.out.exists():
        print(f"{arguments.out} is there already")
        return
    pictures = [*openclipart(arguments.downloads), *emoji(arguments.downloads)]
    random.Random(0).shuffle(pictures)
    if arguments.encode != "png":
        pictures = [picture for picture in pictures if math.prod(picture.size) <= LARGEST_DECODED]
    pictures = pictures[: arguments.pictures]
    with finished_at(arguments.out) as out:
        out.mkdir()
        WRITERS[arguments.format](pictures, out, arguments.encode, arguments.per_file)
    print(f"{arguments.out}: {len(pictures)} pictures, {sum(len(picture.captions) for picture in pictures)} captions")


if __name__ == "__main__":
    main()
