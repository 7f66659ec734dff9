"""Writes a network's tensors in forms that others read."""

import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from raylth.core.fixed_entries import has_fixed_entries
from raylth.core.pruning.torch_prune import to_torch_prune
from raylth.export.stored_network import Network

__all__ = ["check_packages", "write_network"]

NEEDED = {"onnx": ("onnx", "onnxscript")}  # packages that raylth itself does not need
WRITTEN_BY = {"format": "pt"}  # what the Hugging Face hub asks of safetensors files


def check_packages(kind: str) -> None:
    """Raise ValueError, with the command that installs it, for a package that a format needs and that is missing."""
    for package in NEEDED.get(kind, ()):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{kind}: {package} is missing: pip install 'raylth[onnx]'")


def write_network(network: Network, kind: str, folder: Path) -> None:
    """Write the network's files of a format; pruned weights are exactly 0 in all.

    Raises ValueError where a format cannot hold the network.
    """
    if kind == "torch-prune":
        if has_fixed_entries(network.module()):
            raise ValueError(
                "torch-prune: holds tensors only, not the entries that an asymmetric network fixes; use hf or onnx"
            )
        torch.save(to_torch_prune(network.state, network.mask or {}), folder / "model.pt")
    elif kind == "onnx":
        _write_onnx(network, folder / "model.onnx")
    else:
        _write_tensors(network.tensors, folder / "model.safetensors")
        if network.mask is not None and network.small is None:
            kept = {name: alive.to(torch.uint8) for name, alive in network.mask.items()}
            _write_tensors(kept, folder / "mask.safetensors")
        _write_program(network, folder / "model.pt2")


def _write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=WRITTEN_BY))


def _write_program(network: Network, path: Path) -> None:
    """Write the network with its architecture, for `torch.export.load`."""
    with _exporting(network):
        program = torch.export.export(network.module(), (_example(network),), dynamic_shapes=_any_batch())
        torch.export.save(program, path)


def _write_onnx(network: Network, path: Path) -> None:
    """Write the network as ONNX, checked; batch norms are folded into the convolutions before them."""
    import onnx

    with _exporting(network):
        torch.onnx.export(
            network.module(),
            (_example(network),),
            path,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=_any_batch(),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        onnx.checker.check_model(onnx.load(path), full_check=True)


@contextmanager
def _exporting(network: Network) -> Iterator[None]:
    """Leave out what torch says about itself; ValueError, one line, for a network that it cannot export."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OSError:
        raise
    except Exception as error:  # a network that somebody else wrote can fail in any way
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"torch cannot export {network.row['model']!r} ({reason}); --format torch-prune can") from error


def _example(network: Network) -> Tensor:
    return torch.zeros(2, *network.in_shape)  # a batch of 1 would be taken for a fixed one


def _any_batch() -> tuple[dict[int, torch.export.Dim]]:
    return ({0: torch.export.Dim("batch")},)
