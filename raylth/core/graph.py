"""A network as a graph of operations, by torch.fx: what is one operation in it, and what is looked into."""

import contextlib
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from raylth.core.fixed_entries import FixedLayer
from raylth.core.modes import in_mode

__all__ = ["UnknownOperation", "is_of_network", "layer_type", "place_of", "text_of", "trace"]

LAYERS = ("torch.nn.", "torch.ao.nn.")  # modules of torch in which its layers are
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# What a subclass may say anew of a layer that still computes the same: how it is made, drawn, shown, and checks its input.
FREE = {"__init__", "__repr__", "extra_repr", "reset_parameters", "_check_input_dim", "_version", "__constants__"}
CALLED = {"__call__", "__getattr__", "__getattribute__"}  # of the names with underscores, those that a forward pass meets
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}  # buffers that norms write
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
# torch's code, this package's, and decorators.
OF_OTHERS = (f"{Path(torch.__file__).parent}/", f"{Path(__file__).parents[1]}/", contextlib.__file__)


class UnknownOperation(ValueError):
    """An operation whose effect on the symmetry is not known; the text names the node, its source line and what to do."""


def layer_type(module: nn.Module) -> type[nn.Module]:
    """Return which of torch's layers a module is; its own type where it is none.

    A subclass that changes nothing of what its parent computes is what its parent is, and so is a layer with fixed entries.
    """
    own = type(module)
    if isinstance(module, FixedLayer):
        return nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d
    if "forward" in vars(module):  # replaced in this one alone
        return nn.Module
    changed: set[str] = set()
    for base in own.__mro__:
        if base.__module__.startswith(LAYERS):
            named = {name for name in changed - FREE if not name.startswith("__") or name in CALLED}
            known = set(dir(base)) | set(getattr(base, "__annotations__", {}))
            return own if base in (nn.Module, *CONTAINERS) or named & known else base
        changed |= set(vars(base))
    return own


class Tracer(fx.Tracer):
    """Traces a forward pass of one input, with everything else at its default; torch's layers stay whole."""

    failed: tuple[str, nn.Module] | None = None  # the innermost module in which tracing ended

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return what stands for a module's attribute; a norm's statistics are not changed by being traced."""
        self.proxy_buffer_attributes = attr in STATISTICS
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one operation."""
        kind = layer_type(m)
        return kind is not nn.Module and kind.__module__.startswith(LAYERS) and not isinstance(m, CONTAINERS)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Return the forward pass and its arguments: the network and its one input."""
        names = inspect.unwrap(root_fn).__code__.co_varnames
        return root_fn, [self.root, self.create_proxy("placeholder", names[1] if len(names) > 1 else "x", (), {})]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace a module's call, and note the one in which it ended."""
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed is None:
                self.failed = (self.path_of_module(m), m)
            raise


def trace(model: nn.Module, *, training: bool = False, lines: bool = False) -> fx.GraphModule:
    """Trace `model` as it computes in evaluation or in training; the result shares its tensors and is in eval mode.

    Arguments of the forward pass beyond the first have their defaults. With `lines` each node knows its source line, which
    imports torch's compiler (2 s). Raises UnknownOperation, with the source line, for what cannot be traced.
    """
    tracer = Tracer()
    tracer.record_stack_traces = lines
    try:
        with in_mode(model, training=training), _unchecked_dimensions():
            traced = fx.GraphModule(model, tracer.trace(model))
    except Exception as error:  # of the network's own code, which may do anything with what is no tensor
        raise UnknownOperation(_untraceable(model, tracer, error)) from error
    modules = dict(traced.named_modules())
    traced.graph.eliminate_dead_code(lambda node: node.is_impure() or _overwrites(node, modules))
    return traced


@contextmanager
def _unchecked_dimensions() -> Iterator[None]:
    """Keep norms from branching on the number of their input's axes, which has no value while a network is traced.

    That matters where a subclass has a forward pass of its own and calls its parent's.
    """
    kept = [(norm, norm._check_input_dim) for norm in NORMS]
    try:
        for norm in NORMS:
            norm._check_input_dim = lambda *_: None  # type: ignore[method-assign]
        yield
    finally:
        for norm, check in kept:
            norm._check_input_dim = check  # type: ignore[method-assign]


def text_of(traced: fx.GraphModule) -> str:
    """Return a traced network's operations as text, by which two can be compared."""
    return "\n".join(node.format_node() or "" for node in traced.graph.nodes)


def place_of(error: BaseException) -> str:
    """Return " (file:line: source)" of an error's last line that is neither torch's nor this package's; empty without one."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_theirs(frame.filename)]
    if not frames:
        return ""
    line = f": {frames[-1].line}" if frames[-1].line else ""
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}{line})"


def is_of_network(line: str) -> bool:
    """Whether a line of a stack trace ('File "...", line ...') is of a network, not of torch or of what traces it."""
    return line.startswith('File "') and not line.startswith((f'File "{OF_OTHERS[0]}', f'File "{__file__}'))


def _is_theirs(file: str) -> bool:
    return not file.startswith(("<", *OF_OTHERS))


def _untraceable(model: nn.Module, tracer: Tracer, error: Exception) -> str:
    where = f" in {tracer.failed[0]!r}, a {type(tracer.failed[1]).__name__}" if tracer.failed else ""
    if isinstance(error, fx.proxy.TraceError):
        what, advice = str(error), "Its forward pass must not branch on the data"
    else:
        what, advice = f"{type(error).__name__}: {error}", "Its forward pass may use sizes and values only as tensors do"
    return f"{type(model).__name__} cannot be traced{where}: {' '.join(what.split())}{place_of(error)}. {advice}"


def _overwrites(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether an operation writes into its input, as `torch.relu_(x)` does for whoever reads x later."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    is_asked = any(value is True for value in (*node.args[1:], node.kwargs.get("inplace")))
    return is_asked or (name.endswith("_") and not name.endswith("__"))
