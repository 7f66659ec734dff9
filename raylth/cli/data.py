"""Writes data sets in the form that sweeps read: `python -m raylth.data imagenet SRC DST`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raylth.common import signals
from raylth.common.exit_codes import ExitCode, describe
from raylth.common.importing import uncollected
from raylth.common.paths import expanded

if TYPE_CHECKING:
    from raylth.core.data.streamed.sources import Source

__all__ = ["main", "make_parser"]

EPILOG = """\
SRC holds train/ and val/ with a folder of images per class (ImageNet as torchvision unpacks it), or train*.parquet and
val*.parquet (or validation*, test*) with the columns image.bytes and label; also s3://bucket/prefix.

examples:
  python -m raylth.data imagenet /data/imagenet /scratch/imagenet
  python -m raylth.data imagenet s3://bucket/imagenet /scratch/imagenet --max-side 400 --jpeg-share 1

A split that already exists, complete and with the same settings, is kept: the same command resumes where it stopped.
"""
STATUSES = {
    ExitCode.OK: "both files exist",
    ExitCode.BAD_INPUT: "bad input or broken images",
    ExitCode.INTERRUPTED: "interrupted",
}


def make_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m raylth.data", description="Write data sets in the format that sweeps read.",
        epilog=EPILOG + describe(STATUSES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("name", choices=["imagenet"], help="images with labels, as FFCV reads them")
    parser.add_argument("source", metavar="SRC", help="folder or bucket of the images")
    parser.add_argument("target", metavar="DST", help="folder for train.beton and val.beton: data.root of a sweep")
    parser.add_argument("--max-side", type=int, default=500, help="longest side, in pixels (default 500)")
    parser.add_argument("--jpeg-share", type=float, default=0.5, help="share stored as JPEG, the rest raw (default 0.5)")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs (default 90)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: as many as cores)")
    parser.add_argument(
        "--most-broken", type=int, default=10, help="maximum number of undecodable images in a split (default 10)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    with uncollected():
        from raylth.core.data.imagenet import FILES
        from raylth.core.data.streamed.convert import Encoding, convert, is_converted
        from raylth.core.data.streamed.loaders import is_installed
        from raylth.core.data.streamed.sources import open_source
    signals.raise_in_order()
    if not (0 <= options.jpeg_share <= 1 and 1 <= options.quality <= 100 and options.max_side >= 1 and options.workers >= 1):
        parser.error("--jpeg-share is from 0 to 1, --quality from 1 to 100, --max-side and --workers are at least 1")
    if not is_installed("ffcv"):
        print("FFCV, which writes these files, is not installed: run `make ffcv` (docs/guides/imagenet.md)", file=sys.stderr)
        return ExitCode.BAD_INPUT
    encoding = Encoding(options.max_side, options.jpeg_share, options.quality)
    try:
        place, target = expanded(options.source), Path(expanded(options.target))
        sources = {"train": open_source(place, "train"), "test": open_source(place, "val")}
        _check_classes(sources["train"], sources["test"], place)
        for note in (note for source in sources.values() for note in source.notes):
            _tell(note)
        for split, file in FILES.items():
            source, path = sources[split], target / file
            if is_converted(path, source, encoding):
                _tell(f"{path}: exists, with {len(source.labels):,} images of the source")
                continue
            record = convert(source, path, encoding, workers=options.workers, most_broken=options.most_broken, tell=_tell)
            _tell(f"{path}: {record['samples']:,} images, {record['bytes'] / 1e9:.2f} GB, verified, {record['seconds']:g} s")
            _tell(f"  broken: {len(record['broken'])}, made RGB: {record['made_rgb']}, SHA-256 {record['sha256']}")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_INPUT
    except KeyboardInterrupt:
        print("stopped; the same command resumes it", file=sys.stderr)
        return ExitCode.INTERRUPTED
    return ExitCode.OK


def _check_classes(train: "Source", val: "Source", place: str) -> None:
    """Raise DataError where the two splits number their classes differently, and for a class that nothing is trained on."""
    from raylth.core.data import DataError

    if bool(train.classes) != bool(val.classes):
        raise DataError(f"{place}: one split is in folders, the other in Parquet, so their classes cannot be matched")
    different = sorted(set(train.classes) ^ set(val.classes))
    if train.classes and val.classes and different:
        raise DataError(f"{place}: train and val have different classes, {different[0]!r} is in one only")
    empty = [name for number, name in enumerate(train.classes) if not (train.labels == number).any()]
    if empty:
        raise DataError(f"{place}: the class {empty[0]} has no training images: remove its folder or add images")


def _tell(line: str) -> None:
    print(line, flush=True)
