"""Networks that others wrote: by name from torchvision and timm, and a user's own by import path."""

import contextlib
import functools
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import nn

__all__ = ["LIBRARIES", "from_library", "library_names", "library_versions"]

LIBRARIES = ("torchvision", "timm")
HEADS = {"aux_logits": False, "init_weights": True}  # no heads that are there in training only, whose outputs nothing reads
Builder = Callable[[int, int, dict[str, Any]], nn.Module]  # number of classes, channels of an image, further arguments
WITH_HEADS = ("googlenet", "inception_v3")


@functools.cache
def from_library(name: str) -> Callable[..., nn.Module] | None:
    """Return what builds "torchvision:NAME" or "timm:NAME", with random weights; None for any other name.

    Raises ImportError for a library that is not installed, and AttributeError for a network that it does not have.
    """
    library, separator, model = name.partition(":")
    if not separator or library not in LIBRARIES:
        return None
    builder = _torchvision(model) if library == "torchvision" else _timm(model)

    def build(*, width: float, num_classes: int, in_shape: tuple[int, ...], **options: Any) -> nn.Module:
        if width != 1:
            raise ValueError(f"width {width:g}: networks of {library} have only width 1")
        if len(in_shape) != 3:
            raise ValueError(f"{name} takes images (C, H, W), not samples of shape {in_shape}")
        return builder(num_classes, in_shape[0], options)

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


def library_versions() -> dict[str, str]:
    """Return the versions of what networks come from: torch's, and those of the libraries that are installed."""
    found = {"torch": str(torch.__version__)}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _torchvision(model: str) -> Builder:
    from torchvision import models

    if model not in models.list_models():
        raise AttributeError(f"torchvision has no network {model!r} (torchvision.models.list_models() names those it has)")
    if model not in models.list_models(models):
        raise AttributeError(f"torchvision:{model} is not a network for classification")

    def build(num_classes: int, channels: int, options: dict[str, Any]) -> nn.Module:
        if channels != 3:
            raise ValueError(f"torchvision:{model} takes images of 3 channels, not {channels}")
        further = (HEADS if model in WITH_HEADS else {}) | options
        network: nn.Module = models.get_model(model, weights=None, num_classes=num_classes, **further)
        return network

    return build


def _timm(model: str) -> Builder:
    import timm

    if not timm.is_model(model):
        raise AttributeError(f"timm has no network {model!r} (timm.list_models() names those it has)")

    def build(num_classes: int, channels: int, options: dict[str, Any]) -> nn.Module:
        given = {"pretrained": False, "num_classes": num_classes, "in_chans": channels} | options
        network: nn.Module = timm.create_model(model, **given)
        return network

    return build
