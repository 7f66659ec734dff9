"""Follows an exported network from operation to operation: what every axis of every tensor stands for.

What each operation does stands in `rules`.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from raylth.core.graph import UnknownOperation, is_of_network
from raylth.core.permutation.algebra import settle
from raylth.core.permutation.atoms import Atom, Expr, Layout, Many, Mismatch, fix, fixed, is_free, size

__all__ = ["ACTIVATIONS", "RULES", "Follower", "rule"]

Rule = Callable[["Follower", fx.Node, dict[str, Any]], Any]
RULES: dict[str, Rule] = {}  # name of an operation, such as "aten.conv2d" -> what it does
ACTIVATIONS: set[str] = set()  # those of them that are activation functions


def rule(*names: str, activation: bool = False) -> Callable[[Rule], Rule]:
    """File a function `(follower, node, arguments) -> Layout` as the rule of operations, such as `aten.relu`.

    `arguments` are the call's, by the names of the operation's schema, with defaults; tensors are nodes of the graph, whose
    layouts `follower.layout(node)` gives. An operation with several outputs returns a list of layouts.
    """

    def file(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        if activation:
            ACTIVATIONS.update(names)
        return function

    return file


class Follower:
    """One walk over an exported program: the layout of each node, and those of the network's own tensors."""

    def __init__(self, program: ExportedProgram, tensors: dict[str, Layout]) -> None:
        self.program, self.tensors = program, tensors
        self.layouts: dict[fx.Node, Any] = {}
        self.sources: dict[fx.Node, str] = {}  # node -> the network's tensor that it reads
        self.kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}

    def run(self) -> None:
        """Follow the whole program; its outputs stay where they are."""
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "call_function":
                self.layouts[node] = self._call(node)
            elif node.op == "output":
                for source in node.all_input_nodes:
                    for expr in self.layout(source) if is_tensor(source) else ():
                        fix(expr)
            else:
                raise self.unknown(node, f"{node.op}: a part of the network that is not inlined")

    def layout(self, node: fx.Node) -> Layout:
        """Return what the axes of a tensor stand for."""
        if node not in self.layouts:
            self.layouts[node] = self._tensor(node)
        self.layouts[node] = settle(self.layouts[node])
        found: Layout = self.layouts[node]
        return found

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape of a node's output."""
        return tuple(int(length) for length in node.meta["val"].shape)

    def unknown(self, node: fx.Node, what: str) -> UnknownOperation:
        """Return the error for a node whose symmetry is not known."""
        lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
        frames = [number for number, line in enumerate(lines) if is_of_network(line)]
        place = " / ".join(lines[frames[-1] : frames[-1] + 2]) if frames else "no source line known"
        return UnknownOperation(
            f"node {node.name!r} is {what}, whose symmetry is not known ({place}); write it with known operations, "
            "or file its rule with raylth.core.permutation.rule"
        )

    def _placeholder(self, node: fx.Node) -> None:
        spec = self.kinds[node.name]
        is_kept = spec.kind == InputKind.PARAMETER or (spec.kind == InputKind.BUFFER and spec.persistent)
        if is_kept:  # by a state dict: nothing moves the others
            self.sources[node] = str(spec.target)  # its axes are named when it is met
        elif is_tensor(node):
            self.layouts[node] = [fixed(length) for length in self.shape(node)]

    def _tensor(self, node: fx.Node) -> Layout:
        """Name the axes of a tensor of the network: each may have an order of its own for each entry of those before."""
        name = self.sources[node]
        if name not in self.tensors:
            axes: list[Expr] = []
            outer: list[Atom] = []
            for place, length in enumerate(self.shape(node)):
                label = name.removesuffix(".weight") if place == 0 else f"{name}.{place}"
                axis = Atom(length, label, 1 + (place > 0), tuple(outer)) if length > 1 else Many(1)
                axes.append(axis)
                outer += [axis] if isinstance(axis, Atom) else []
            self.tensors[name] = axes
        return self.tensors[name]

    def writes(self, node: fx.Node) -> None:
        """Give an axis 0 of one of the network's tensors its name: the layer's that writes it."""
        if (name := self.sources.get(node)) is not None and isinstance(axis := self.tensors[name][0], Atom):
            axis.rank = min(axis.rank, 0)

    def _call(self, node: fx.Node) -> Any:
        given = arguments(node)
        name = operation(node)
        if name == "getitem":
            source, place = node.args
            return self.layouts[source][place]  # type: ignore[index]
        if not is_tensor(node) and not isinstance(node.meta.get("val"), tuple | list):
            return None  # a size, or a check
        tensors = [source for source in node.all_input_nodes if is_tensor(source)]
        if name not in RULES:
            if any(is_free(expr) for source in tensors for expr in self.layout(source)):
                raise self.unknown(node, f"the operation {name}")
            return self._still(node)
        try:
            result = RULES[name](self, node, given)
        except Mismatch as error:
            raise self.unknown(node, f"{name} ({error})") from error
        return self._settled(node, result)

    def _settled(self, node: fx.Node, result: Any) -> Any:
        if result and isinstance(result[0], list):
            return [settle(each) for each in result]
        layout, shape = settle(result), self.shape(node)
        lengths = tuple(map(size, layout))
        assert lengths == shape, f"{node.format_node()}: {lengths} for {shape}"
        return layout

    def _still(self, node: fx.Node) -> Any:
        """Return a layout in which nothing moves."""
        value = node.meta["val"]
        if isinstance(value, tuple | list):
            return [[fixed(int(length)) for length in each.shape] for each in value]
        return [fixed(length) for length in self.shape(node)]


def is_tensor(node: Any) -> bool:
    """Whether a node's value is a tensor."""
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor)


def operation(node: fx.Node) -> str:
    """Return the name of a node's operation, without its overload: aten.add."""
    packet = getattr(node.target, "overloadpacket", None)
    return str(packet) if packet is not None else str(getattr(node.target, "__name__", node.target))


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return a call's arguments by the names of its schema, with the defaults of those that are not given."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    given: dict[str, Any] = {}
    for place, argument in enumerate(schema.arguments):
        if place < len(node.args):
            given[argument.name] = node.args[place]
        elif argument.name in node.kwargs:
            given[argument.name] = node.kwargs[argument.name]
        else:
            given[argument.name] = argument.default_value if argument.has_default_value() else None
    return given
