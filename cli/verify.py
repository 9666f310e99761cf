"""``gatokit verify``: checks that a finished directory is what its manifest says."""

import argparse
import time
from contextlib import nullcontext

from gatokit.cli.console import Output
from gatokit.schemas.words import byte_size, counted

EXAMPLE = """gatokit verify built
  gatokit verify built --decode"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("directory", metavar="DIR", help="finished build or scan")
    parser.add_argument("--decode", action="store_true", help="decode every image too, as training does")


def run(arguments: argparse.Namespace) -> int:
    """Verifies and shows the faults, one a line; status 1 if there are any."""
    from gatokit.inspection import open_directory
    from gatokit.inspection.verify.directory import verify
    from gatokit.inspection.verify.pictures import ImageDecoder

    output = Output(arguments.json)
    begin = time.monotonic()
    decoder = ImageDecoder() if arguments.decode else None
    with output.progress() as progress, decoder or nullcontext():
        faults = verify(arguments.directory, progress, decoder)
    seconds = time.monotonic() - begin
    result = {"ok": not faults, "faults": [vars(item) for item in faults], "seconds": seconds}
    for item in faults:
        output.say(f"{item.file}: {item.fault}")
    if faults:
        files = len({item.file for item in faults})
        output.say(f"{arguments.directory}: {counted(len(faults), 'fault')} in {files} of its files")
    else:
        manifest = open_directory(arguments.directory).manifest
        count, records = len(manifest.files), sum(dataset.records for dataset in manifest.datasets)
        total = sum(entry.size for entry in manifest.files)
        output.say(
            f"{arguments.directory} is complete and sound: {count:,} files, {byte_size(total)}, {records:,} records "
            f"in {seconds:.1f} s ({byte_size(total / seconds)}/s, {records / seconds:,.0f} records/s)"
        )
        if decoder is not None:
            output.say(f"all {counted(decoder.images, 'image')} decode")
            result["images"] = decoder.images
        losses = {dataset.name: dataset.losses for dataset in manifest.datasets if dataset.losses}
        for name, sentences in losses.items():
            for sentence in sentences:
                output.say(f"{name}: of the source, {sentence}")
        result |= {"files": count, "bytes": total, "records": records, "losses": losses}
    output.result(result)
    return 1 if faults else 0
