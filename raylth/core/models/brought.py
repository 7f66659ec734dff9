"""Networks that others wrote: by name from torchvision and timm, and a user's own by import path."""

import ast
import contextlib
import functools
import hashlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from torch import nn

__all__ = ["LIBRARIES", "code_of", "from_library", "library_names"]

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


def library_names() -> list[str]:
    """List the classifiers of the installed libraries, as `from_library` takes them: "torchvision:resnet18"."""
    names = []
    with contextlib.suppress(Exception):  # a suggestion is worth no failure
        from torchvision import models

        names += [f"torchvision:{name}" for name in models.list_models(module=models)]
    with contextlib.suppress(Exception):
        import timm

        names += [f"timm:{name}" for name in timm.list_models()]
    return names


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


def code_of(name: str, build: Callable[..., object]) -> str | None:
    """Return a SHA-256 of the modules in which something of a user's own is written; None for this package's and libraries'.

    They are the one of an import path `name`, and the one of the function `build`. The hash is of the syntax, so comments and
    line breaks do not matter. Modules that these import are not in it.
    """
    path, separator, _ = name.partition(":")
    while isinstance(build, functools.partial):
        build = build.func
    names = [*([path] if separator and path not in LIBRARIES else []), getattr(build, "__module__", "")]
    own = __name__.split(".")[0]
    trees = []
    for module in (sys.modules.get(name) for name in dict.fromkeys(names)):
        file = None if module is None or module.__name__.split(".")[0] == own else inspect.getsourcefile(module)
        if file is not None:
            trees.append(ast.dump(ast.parse(Path(file).read_bytes())))
    return hashlib.sha256("\n".join(trees).encode()).hexdigest()[:16] if trees else None
