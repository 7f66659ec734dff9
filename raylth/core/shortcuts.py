"""Residual shortcuts, found in a network's graph: layers by which a sum's input passes its branch by."""

import operator
from collections.abc import Mapping

import torch
from torch import fx, nn

from raylth.core.graph import UnknownOperation, trace
from raylth.core.permutation import rules
from raylth.core.permutation.propagate import ACTIVATIONS, RULES, known_as

__all__ = ["shortcut_layers"]

SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
WEIGHTED = (rules.linear, rules.convolution, rules.transposed_convolution)


def shortcut_layers(model: nn.Module) -> set[str] | None:
    """Return the layers with weights that lie on residual shortcuts, by the name of their weight; None where it is not known.

    Where two tensors are added that come from one, a shortcut is the side whose own way has layers, but no activation behind
    any of them, while the other's has: a projection beside a branch. None is for a network that cannot be traced.
    """
    try:
        traced = trace(model)
    except UnknownOperation:
        return None
    modules = dict(traced.named_modules())
    nodes = list(traced.graph.nodes)
    before: dict[fx.Node, int] = {}  # each node with all that it is computed from, as bits
    layers: dict[int, str] = {}  # a layer's bit -> the name of its weight
    constants, activations = 0, list[tuple[int, int]]()
    for place, node in enumerate(nodes):
        before[node] = 1 << place
        for read in node.all_input_nodes:
            before[node] |= before[read]
        if (weight := _weight(node, modules)) is not None:
            layers[1 << place] = weight
        elif _is_activation(node, modules):
            activations.append((1 << place, before[node]))
        constants |= (node.op == "get_attr") << place
    found: set[str] = set()
    for node in nodes:
        if node.op == "call_module" or node.target not in SUMS or len(set(node.all_input_nodes)) != 2:
            continue
        one, other = (before[read] for read in dict.fromkeys(node.all_input_nodes))
        if not one & other & ~constants:
            continue  # a bias
        ways = [way & ~beside for way, beside in ((one, other), (other, one))]
        weighted = [sum(bit for bit in layers if bit & way) for way in ways]
        is_branch = [
            any(bit & way and read & here for bit, read in activations) for way, here in zip(ways, weighted, strict=True)
        ]
        for here, itself, beside in ((weighted[0], *is_branch), (weighted[1], *is_branch[::-1])):
            if beside and not itself:
                found |= {name for bit, name in layers.items() if bit & here}
    return found


def _weight(node: fx.Node, modules: Mapping[str, nn.Module]) -> str | None:
    """Return the name of the weight of a convolution or linear layer, or of what its weight is computed from; None for
    anything else."""
    known = known_as(node, modules)
    if known is None or RULES[known] not in WEIGHTED:
        return None
    if node.op == "call_module":
        return f"{node.target}.weight"
    waiting = [rules.argument(node, 1, "weight")]
    while waiting:
        read = waiting.pop()
        if isinstance(read, fx.Node):
            if read.op == "get_attr" and str(read.target).split(".")[-1] == "weight":
                return str(read.target)
            waiting += read.all_input_nodes
    return None


def _is_activation(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node is an activation function, or an operation of unknown kind."""
    if node.op not in ("call_module", "call_function", "call_method"):
        return False
    known = known_as(node, modules)
    return known is None or known in ACTIVATIONS
