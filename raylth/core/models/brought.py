"""Networks that others wrote: by name from torchvision and timm, and a user's own by import path."""

import ast
import hashlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from torch import nn

__all__ = ["LIBRARIES", "code_of", "from_library"]

LIBRARIES = ("torchvision", "timm")


def from_library(name: str) -> Callable[..., nn.Module] | None:
    """Return what builds "torchvision:NAME" or "timm:NAME", with random weights; None for any other name.

    Raises ImportError for a library that is not installed, and AttributeError for a network that it does not have.
    """
    library, separator, model = name.partition(":")
    if not separator or library not in LIBRARIES:
        return None
    builder = _torchvision(model) if library == "torchvision" else _timm(model)

    def build(*, width: float, num_classes: int, in_shape: tuple[int, ...]) -> nn.Module:
        if width != 1:
            raise ValueError(f"width {width:g}: the networks of {library} have one width, which is 1")
        if len(in_shape) != 3:
            raise ValueError(f"{name} takes images (C, H, W), not samples of shape {in_shape}")
        return builder(num_classes, in_shape[0])

    return build


def _torchvision(model: str) -> Callable[[int, int], nn.Module]:
    from torchvision import models

    if model not in models.list_models():
        raise AttributeError(f"torchvision has no network {model!r} (torchvision.models.list_models() names those it has)")

    def build(num_classes: int, channels: int) -> nn.Module:
        if channels != 3:
            raise ValueError(f"torchvision:{model} takes images of 3 channels, not {channels}")
        network: nn.Module = models.get_model(model, weights=None, num_classes=num_classes)
        return network

    return build


def _timm(model: str) -> Callable[[int, int], nn.Module]:
    import timm

    if not timm.is_model(model):
        raise AttributeError(f"timm has no network {model!r} (timm.list_models() names those it has)")

    def build(num_classes: int, channels: int) -> nn.Module:
        network: nn.Module = timm.create_model(model, pretrained=False, num_classes=num_classes, in_chans=channels)
        return network

    return build


def code_of(build: Callable[..., object]) -> str | None:
    """Return a SHA-256 of the module in which a user's own network is written; None for this package's and libraries'.

    It is of the syntax, so comments and line breaks do not matter. Modules that this one imports are not in it.
    """
    module = sys.modules.get(getattr(build, "__module__", ""))
    if module is None or module.__name__.split(".")[0] == __name__.split(".")[0]:
        return None
    file = inspect.getsourcefile(module)
    if file is None:
        return None
    tree = ast.dump(ast.parse(Path(file).read_bytes()))
    return hashlib.sha256(tree.encode()).hexdigest()[:16]
