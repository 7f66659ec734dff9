"""Follows a traced network from node to node and files who owns which entry of which tensor.

What each operation does stands in `rules.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from raylth.core.layout import FIXED, Entries, Layout, Mismatch, Units
from raylth.core.modes import in_mode

__all__ = ["ACTIVATIONS", "RULES", "UnknownOperation", "Walk", "rule", "trace"]


class UnknownOperation(ValueError):
    """An operation whose effect on the symmetry is not known; the text names the node, its source line and what to do."""


Rule = Callable[["Walk", fx.Node, nn.Module | None], Layout]
RULES: dict[Any, Rule] = {}  # module type, function or method name -> what it does to the layout
SIZES = (getattr, "size", "dim", "numel", torch._assert)
ACTIVATIONS: set[Any] = set()  # those of them that are activation functions


def rule(*targets: Any, activation: bool = False) -> Callable[[Rule], Rule]:
    """File a function `(walk, node, module) -> Layout` as the rule of module types, functions or method names.

    A function that is slow to import may be given by its dotted name. This is how a network with an operation of its own is
    made known: see `rules.py` for the rules of torch's own.
    """

    def file(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, function))
        if activation:
            ACTIVATIONS.update(targets)
        return function

    return file


def trace(model: nn.Module, *, training: bool = False, lines: bool = False) -> fx.GraphModule:
    """Trace `model` as it computes in evaluation or in training; the result shares its tensors and is in eval mode.

    With `lines` each node knows its source line, which imports torch's compiler (2 s).
    """
    tracer = fx.Tracer()
    tracer.record_stack_traces = lines
    try:
        with in_mode(model, training=training):
            traced = fx.GraphModule(model, tracer.trace(model))
    except fx.proxy.TraceError as error:
        raise UnknownOperation(
            f"{type(model).__name__} cannot be traced: {error}. Its forward pass must not branch on the data"
        ) from error
    modules = dict(traced.named_modules())
    traced.graph.eliminate_dead_code(lambda node: node.is_impure() or _overwrites(node, modules))
    return traced


def _overwrites(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether an operation writes into its input, as `torch.relu_(x)` does for whoever reads x later."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    is_asked = any(value is True for value in (*node.args[1:], node.kwargs.get("inplace")))
    return is_asked or (name.endswith("_") and not name.endswith("__"))


class Walk:
    """One walk over a traced graph: who owns each entry of each tensor, and the parameters' axes met on the way."""

    def __init__(
        self, traced: fx.GraphModule, state: Mapping[str, Tensor], example_input: Tensor, earlier: "Walk | None" = None
    ) -> None:
        self.traced = traced
        self.modules = dict(traced.named_modules())
        self.tensors = state
        self.layouts: dict[fx.Node, Layout] = {}
        self.units: Units = earlier.units if earlier else Units()
        self.axes: dict[tuple[str, int], Entries] = earlier.axes if earlier else {}
        with in_mode(traced, training=False), torch.no_grad():  # the example batch must not touch batch-norm statistics
            ShapeProp(traced).propagate(example_input)

    def run(self) -> None:
        """Follow every node; raises UnknownOperation at the first without a rule."""
        for node in self.traced.graph.nodes:
            if node.op == "output" or self._packs_outputs(node):
                for result in node.all_input_nodes:
                    for entries in self.layouts.get(result, ()):
                        self.units.fix(entries)
            elif _is_tensor(node):  # sizes and the like own nothing
                try:
                    self.layouts[node] = self._follow(node)
                except Mismatch as error:
                    raise self.unknown(node, f"an operation where {error}") from error
            elif node.target not in SIZES and any(_is_tensor(argument) for argument in node.all_input_nodes):
                raise self.unknown(node, f"{_name(node.target)}, which gives no single tensor")

    def _packs_outputs(self, node: fx.Node) -> bool:
        """Say whether a node only gathers outputs in a named tuple."""
        is_tuple = isinstance(node.target, type) and issubclass(node.target, tuple)
        return is_tuple and all(user.op == "output" for user in node.users)

    def _follow(self, node: fx.Node) -> Layout:
        if node.op == "placeholder":
            shape = self.shape(node)
            return (None, ((FIXED, shape[1]),), *[None] * (len(shape) - 2)) if len(shape) > 1 else (None,)
        if node.op == "get_attr":
            return self.parameter(str(node.target))
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        what = type(module) if module is not None else node.target
        for known in (what, _dotted_name(what)):
            if known in RULES:
                return RULES[known](self, node, module)
        raise self.unknown(node, f"{'a module of type ' if module is not None else 'the operation '}{_name(what)}")

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape of a node's output."""
        meta: Any = node.meta["tensor_meta"]
        return tuple(meta.shape)

    def parameter(self, name: str) -> Layout:
        """Return the layout of a parameter or buffer that is read as it is; each axis not met before gets an owner."""
        if name not in self.tensors:  # a constant that the tracer made
            return tuple(((FIXED, length),) for length in self.traced.get_buffer(name).shape)
        shape = self.tensors[name].shape
        return tuple(self.output(name, dim, name) if length > 1 else None for dim, length in enumerate(shape))

    def read(self, tensor: str | None, dim: int, entries: Entries) -> None:
        """File that axis `dim` of a tensor holds `entries`; a module that is used twice makes both of its groups one."""
        if tensor is None or tensor not in self.tensors:
            return
        known = self.axes.get((tensor, dim), entries)
        self.axes[tensor, dim] = self.units.union(known, entries)

    def output(self, tensor: str, dim: int, name: str) -> Entries:
        """Return who owns axis `dim` of a tensor: a new owner called `name` when it is met for the first time."""
        if (tensor, dim) not in self.axes:
            self.axes[tensor, dim] = self.units.new(name, self.tensors[tensor].shape[dim])
        return self.axes[tensor, dim]

    def unknown(self, node: fx.Node, what: str) -> UnknownOperation:
        """Return the error for a node whose symmetry is not known."""
        lines = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip()]
        frames = [number for number, line in enumerate(lines) if line.startswith("File ") and "/torch/" not in line]
        place = " / ".join(lines[frames[-1] : frames[-1] + 2]) if frames else "no source line known"
        return UnknownOperation(
            f"node {node.name!r} is {what}, whose symmetry is not known ({place}); write it with known operations, "
            "or file its rule with raylth.core.derive.rule"
        )


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("tensor_meta"), TensorMetadata)


def _name(target: Any) -> str:
    return str(getattr(target, "__name__", target))


def _dotted_name(target: Any) -> str:
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
