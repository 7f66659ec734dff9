"""The command line of an export: `python -m raylth.export STORE KEY [--format FORMAT] [--out FOLDER]`."""

import argparse
import contextlib
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from raylth.common import signals
from raylth.common.exit_codes import ExitCode, describe
from raylth.common.importing import uncollected
from raylth.common.paths import expanded
from raylth.store import BrokenArtefact, NewerStore, Store

__all__ = ["FORMATS", "main", "make_parser"]

FORMATS = ("safetensors", "torch-prune", "onnx", "hf")
ABOUT = """\
Write one trained network into a folder.

examples:
  python -m raylth.export raylth-store 3f1c0a2b9d4e
  python -m raylth.export s3://bucket/store 3f1c0a --format onnx --out ticket
"""
EPILOG = """\
KEY is the column `key` of the results, or a unique prefix of it; networks are dense, pruned (imp) or sparse.

formats:
  safetensors  model.safetensors, mask.safetensors (1 alive, 0 pruned), and model.pt2 for torch.export.load
  torch-prune  model.pt: a state dict as torch.nn.utils.prune has it, for a network of your own
  onnx         model.onnx, for batches of any size; needs pip install 'raylth[onnx]'
  hf           as safetensors, with a card that the Hugging Face hub reads; `hf upload USER/NAME FOLDER` uploads it
Each has a model card (README.md), config.json, and load.py, which loads the network without raylth.

"""
STATUSES = {
    ExitCode.OK: "the folder was written",
    ExitCode.BAD_INPUT: "bad input, and nothing was written",
    ExitCode.INTERRUPTED: "interrupted",
}


def make_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m raylth.export", description=ABOUT, epilog=EPILOG + describe(STATUSES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("store", metavar="STORE", help="the store (`storage` in the sweep file)")
    parser.add_argument("key", metavar="KEY", help="the network's `key` in the results, or a unique prefix of it")
    parser.add_argument("--format", choices=FORMATS, default="safetensors", help="(default: safetensors)")
    parser.add_argument(
        "--compact", action="store_true", help="a smaller dense network without the units that the mask has left unused"
    )
    parser.add_argument("--out", metavar="FOLDER", help="a new folder (default: ./<first 12 of KEY>-<format>)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = make_parser().parse_args(arguments)
    with uncollected():
        from raylth.core.masks import MaskBroken
        from raylth.export.formats import check_packages, write_network
        from raylth.export.load_script import snippet
        from raylth.export.model_card import card, config
        from raylth.export.stored_network import compacted, find_network
    signals.raise_in_order()
    try:
        check_packages(options.format)
        if options.compact and options.format == "torch-prune":
            raise ValueError("--compact: torch-prune is a format of masks, and a smaller network has none: choose another")
        out = None if options.out is None else expanded(options.out)
        if out is not None:
            _check_new(out)
        store = Store(options.store)
        network = find_network(store, options.key)
        network = compacted(network) if options.compact else network
        target = Path(out or f"{network.key[:12]}-{options.format}")
        _check_new(target)
        with _new_folder(target) as folder:
            write_network(network, options.format, folder)
            (folder / "config.json").write_text(config(network, options.format))
            (folder / "load.py").write_text(snippet(network, options.format))
            (folder / "README.md").write_text(card(network, options.format))
    except (OSError, ValueError, BrokenArtefact, NewerStore, MaskBroken) as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return ExitCode.BAD_INPUT
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return ExitCode.INTERRUPTED
    print(target)
    return ExitCode.OK


def _check_new(target: str | Path) -> None:
    """Raise ValueError for a folder that is there, and for a place that is none of this machine's."""
    if "://" in str(target):
        raise ValueError(f"--out: {target} is not a folder of this machine")
    if os.path.lexists(target):
        raise ValueError(f"{target} exists: name another folder with --out")


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Give a folder beside the target that takes its name in the end; of a failure nothing is left."""
    made = [folder for folder in target.absolute().parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):  # somebody else's by now
                folder.rmdir()
        raise
