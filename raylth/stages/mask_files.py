"""Masks in files: read what was made elsewhere, perhaps with its network, and write the mask of an artefact for others.

A file is safetensors, or what `torch.save` wrote of a state dict (read with `weights_only`). It holds either masks alone,
one tensor of 0 and 1 per weight, or the state dict of a network that `torch.nn.utils.prune` pruned.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from raylth.common.paths import expanded
from raylth.core.masks import Mask, full_mask
from raylth.core.pruning.torch_prune import complete_mask, from_plain_masks, from_torch_prune, is_torch_prune, to_torch_prune
from raylth.core.state import like
from raylth.store import Store, decode_tensors, write_atomically

__all__ = ["MaskFile", "export_mask", "read_mask_file"]

FORMATS = (".safetensors", ".pt", ".pth")
WRITTEN_BY_TORCH = (b"PK", b"\x80")  # a zip archive, or before torch 1.6 a pickle


@dataclass(frozen=True)
class MaskFile:
    """What a file made elsewhere holds: a mask over every prunable weight, and the network's weights where it has them."""

    mask: Mask
    weights: dict[str, Tensor] | None
    sha256: str


def read_mask_file(path: str | Path, network: nn.Module, *, prune_shortcuts: bool = False) -> MaskFile:
    """Read a mask for `network`, whose shapes alone matter; weights that the file does not name stay alive.

    Raises ValueError, one line with the path, when the file cannot be read, is of another network, or holds no mask.
    """
    path = Path(expanded(str(path)))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        tensors = _decode(path, data)
        weights, found = from_torch_prune(tensors) if is_torch_prune(tensors) else (None, from_plain_masks(tensors))
        complete = complete_mask(found, full_mask(network, prune_shortcuts=prune_shortcuts))
        if weights is not None:
            _check_weights(weights, network)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return MaskFile(complete, weights, hashlib.sha256(data).hexdigest())


def export_mask(store: Store, key: str, path: str | Path, *, with_network: bool = False) -> None:
    """Write the mask of an artefact (column `key` of the results) to a file in a common format, atomically.

    The mask alone is one uint8 tensor of 0 and 1 per weight; with its network it is the state dict of
    `torch.nn.utils.prune`. The suffix decides the format: .safetensors, or .pt for `torch.load`.
    Raises ValueError for another suffix and for a key that the store does not hold, KeyError when the artefact has no mask.
    """
    path = Path(expanded(str(path)))
    _check_ending(path)
    if not store.has(key):
        raise ValueError(
            f"{store.root}: there is no artefact {key!r} here; the column `key` of its results lists those that are"
        )
    alive = {name: torch.tensor(array) for name, array in store.tensors(key, "mask").items()}
    if with_network:
        state = {name: torch.tensor(array) for name, array in store.tensors(key, "weights").items()}
        tensors = to_torch_prune(state, alive)
    else:
        tensors = {name: kept.to(torch.uint8) for name, kept in alive.items()}
    if path.suffix == ".safetensors":
        data = save(tensors)
    else:
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        data = buffer.getvalue()
    write_atomically(path, data)


def _decode(path: Path, data: bytes) -> dict[str, Tensor]:
    _check_ending(path)
    if path.suffix == ".safetensors":  # plain, or one of the store's own files with its packed bits
        try:
            return {name: torch.tensor(array) for name, array in decode_tensors(data).items()}
        except ValueError as error:
            raise ValueError(f"not a safetensors file: its {len(data)} bytes are damaged, or of another kind") from error
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # what it makes of strange bytes can be anything
        if data.startswith(WRITTEN_BY_TORCH):
            raise ValueError("damaged, or it holds more than tensors: save the network's state_dict()") from error
        raise ValueError(f"not a file that torch.save wrote: its {len(data)} bytes are of another kind") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError("expected a state dict (name -> tensor)")
    return like(state, state)


def _check_ending(path: Path) -> None:
    if path.suffix not in FORMATS:
        raise ValueError(f"{path.name}: the suffix is not one of {', '.join(FORMATS)}")


def _check_weights(weights: dict[str, Tensor], network: nn.Module) -> None:
    expected = network.state_dict()
    for name in sorted(expected.keys() ^ weights.keys()):
        where = "the file lacks" if name in expected else "the network does not have"
        raise ValueError(f"{where} {name!r}")
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            raise ValueError(f"{name} has shape {tuple(weights[name].shape)}, the network's {tuple(tensor.shape)}")
