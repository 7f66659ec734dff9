"""Follows a traced network from node to node and files who owns which entry of which tensor.

What each operation does stands in `rules.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from raylth.core.graph import UnknownOperation, is_of_network, layer_type
from raylth.core.modes import in_mode
from raylth.core.permutation.axes import FIXED, Entries, Layout, Mismatch, Units

__all__ = ["ACTIVATIONS", "RULES", "UnknownOperation", "Walk", "known_as", "rule"]


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


def known_as(node: fx.Node, modules: Mapping[str, nn.Module]) -> Any:
    """Return what the rule of a node's operation is filed under, by type, function or name; None where there is no rule."""
    if node.op not in ("call_module", "call_function", "call_method"):
        return None
    what = layer_type(modules[str(node.target)]) if node.op == "call_module" else node.target
    return next((known for known in (what, _dotted_name(what)) if known in RULES), None)


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
        before = {name: buffer.clone() for name, buffer in traced.named_buffers()}
        with in_mode(traced, training=False), torch.no_grad():  # the example batch must not touch batch-norm statistics
            ShapeProp(traced).propagate(example_input)
            for name, buffer in traced.named_buffers():
                buffer.copy_(before[name])

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
                raise self.unknown(node, f"{_name(node.target)}, which does not return a single tensor")

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
        if (known := known_as(node, self.modules)) is not None:
            return RULES[known](self, node, module)
        what = f"the operation {_name(node.target)}" if module is None else f"a module of type {type(module).__name__}"
        raise self.unknown(node, what)

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
        frames = [number for number, line in enumerate(lines) if is_of_network(line)]
        place = " / ".join(lines[frames[-1] : frames[-1] + 2]) if frames else "no source line known"
        return UnknownOperation(
            f"node {node.name!r} is {what}, whose symmetry is not known ({place}); write it with known operations, "
            "or register a rule for it with raylth.core.permutation.derive.rule"
        )


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("tensor_meta"), TensorMetadata)


def _name(target: Any) -> str:
    return str(getattr(target, "__name__", target))


def _dotted_name(target: Any) -> str:
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
