"""Networks by name. `build_model` is the one way in; the functions that it calls are filed in `MODELS`."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from raylth.common.registry import nearest
from raylth.core.graph import place_of
from raylth.core.models.base import MODELS
from raylth.core.models.code import check_code, code_of
from raylth.core.models.mlp import mlp
from raylth.core.models.resnet import resnet20
from raylth.core.models.resnet50 import resnet50
from raylth.core.models.vgg import vgg11
from raylth.core.models.vit import vit

__all__ = [
    "MODELS", "OURS", "build_model", "build_shapes", "check_code", "code_of", "init_model", "mlp", "resnet20", "resnet50",
    "vgg11", "vit",
]  # fmt: skip

INITS = ("own", "torch")
OURS = (mlp, resnet20, resnet50, vgg11, vit)
Options = Mapping[str, Any] | Sequence[tuple[str, Any]]  # keyword arguments of one network


def build_model(
    name: str,
    *,
    width: float = 1,
    num_classes: int,
    in_shape: tuple[int, ...],
    code: str | None = None,
    init: str = "own",
    options: Options = (),
) -> nn.Module:
    """Build the named network with its own default initialisation drawn from torch's current random state.

    `in_shape` is one sample's shape without the batch: (C, H, W) for images, (L,) for signals; `width` multiplies
    every hidden width. With `init` "torch" all convolutions and linear layers have torch's default initialisation. `code` is
    `code_of` of a user's own network, `options` are keyword arguments of the network's own. Raises UnknownName for a name
    that is not registered, ValueError for a shape, width or option that the network cannot have and for what is no network,
    RuntimeError where its code differs from `code`.
    """
    check_code("model", name, MODELS[name], code)
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"width must be a positive number, not {width}")
    settings: dict[str, Any] = {"width": width, "num_classes": num_classes, "in_shape": tuple(in_shape)}
    if init not in INITS:
        raise ValueError(f"init: {init!r} is none of {', '.join(INITS)}")
    network = _build(name, settings, dict(options))
    if init == "torch":
        for module in network.modules():
            if isinstance(module, _ConvNd | nn.Linear):
                module.reset_parameters()
    return network


def _build(name: str, settings: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    make = MODELS[name]
    if make in OURS:
        _check_options(name, make, settings, options)
        return make(**settings, **options)
    try:
        network = make(**settings, **options)
    except (Exception, SystemExit) as error:  # of someone else's network: named, in one line
        why = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{name} cannot be built: {' '.join(why.split())}{place_of(error)}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} must return a torch.nn.Module, and returned {_shown(network)}")
    return network


def _check_options(name: str, make: Callable[..., nn.Module], settings: dict[str, Any], options: dict[str, Any]) -> None:
    known = [option for option in inspect.signature(make).parameters if option not in settings]
    for option in options:
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{name} has no option {option!r}{nearest(option, known)} ({has})")


def _shown(found: object) -> str:
    if isinstance(found, type):
        return f"the class {found.__name__}, not one of it"
    return "None" if found is None else f"a {type(found).__name__}"


def init_model(
    seed: int,
    name: str,
    *,
    width: float = 1,
    num_classes: int,
    in_shape: tuple[int, ...],
    code: str | None = None,
    init: str = "own",
    options: Options = (),
) -> nn.Module:
    """Build the named network from a seed of its own, and leave torch's random state as it was.

    The weights are drawn on the CPU, so that one seed means one initialisation on every device.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(
            name, width=width, num_classes=num_classes, in_shape=in_shape, code=code, init=init, options=options
        )


def build_shapes(
    name: str,
    *,
    width: float = 1,
    num_classes: int,
    in_shape: tuple[int, ...],
    code: str | None = None,
    init: str = "own",  # which moves no shape
    options: Options = (),
) -> nn.Module:
    """Build the named network without values, on torch's meta device: what it would have, at no cost.

    One that cannot be built there, because it computes with values, is built as it is.
    """
    settings: dict[str, Any] = {"width": width, "num_classes": num_classes, "in_shape": in_shape, "code": code}
    settings["options"] = options
    try:
        with torch.device("meta"), _NoDraws():
            return build_model(name, **settings)
    except ValueError:
        if MODELS[name] in OURS:
            raise
        return init_model(0, name, **settings)


class _NoDraws(TorchFunctionMode):
    """Leaves tensors as they are where an initialisation would draw them: on the meta device that imports a compiler."""

    DRAWS = (Tensor.normal_, Tensor.uniform_)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func in self.DRAWS else func(*args, **(kwargs or {}))
