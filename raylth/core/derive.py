"""Derives a network's permutation symmetry from the network itself: nothing is written by hand per architecture.

The network is traced with torch.fx and its channel axis followed from node to node. A layer with weights starts a new
group at its output and reads its input's group; what works channel by channel hands the group on; an addition makes two
groups one. An operation that is not known stops the derivation: it never guesses.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from raylth.core.spec import Axis, Group, PermutationSpec

__all__ = ["UnknownOperation", "capture_sites", "derive_spec"]

FIXED = 0  # the group of every axis that must stay as it is: inputs, logits

ACTIVATIONS = {nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Hardswish, nn.ReLU6}
ACTIVATION_FUNCTIONS = {
    torch.relu,
    torch.relu_,
    F.relu,
    F.gelu,
    F.silu,
    torch.tanh,
    torch.sigmoid,
    F.leaky_relu,
    F.elu,
    "relu",
}
CHANNELWISE = ACTIVATIONS | {
    nn.Dropout, nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
}  # fmt: skip
CHANNELWISE_FUNCTIONS = ACTIVATION_FUNCTIONS | {
    F.dropout, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, "contiguous",
}  # fmt: skip
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
BATCH_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class UnknownOperation(ValueError):
    """An operation whose effect on the symmetry is not known; the text names the node and its source line."""


@dataclass(frozen=True)
class Flow:
    """What flows along an edge: the group that indexes axis 1, and how many entries each of its units owns."""

    group: int
    block: int = 1


def derive_spec(model: nn.Module, example_input: Tensor) -> PermutationSpec:
    """Derive the permutation groups of `model` from its traced graph.

    `example_input` is a batch (B, *in_shape) that the network accepts; only its shape matters. Each group's site is
    its last activation in the graph, so a residual stream is watched at its last block's output (design.md 2.9).
    Raises UnknownOperation for an operation that is not known, with its name and source line.
    """
    traced = _trace(model)
    was_training = traced.training
    traced.eval()  # the example batch must not touch batch-norm statistics
    with torch.no_grad():
        ShapeProp(traced).propagate(example_input)
    traced.train(was_training)
    return _Derivation(traced).run()


def capture_sites(model: nn.Module, spec: PermutationSpec) -> nn.Module:
    """Return a network that shares `model`'s tensors and gives the outputs at `spec.sites` as a tuple, in one pass."""
    traced = _trace(model)
    nodes = {node.name: node for node in traced.graph.nodes}
    missing = [site for site in spec.sites if site not in nodes]
    if missing:
        raise ValueError(f"the network has no node {missing[0]!r}: the spec was derived from another architecture")
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    output.args = (tuple(nodes[site] for site in spec.sites),)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def _trace(model: nn.Module) -> fx.GraphModule:
    tracer = fx.Tracer()
    tracer.record_stack_traces = True
    return fx.GraphModule(model, tracer.trace(model))


class _Derivation:
    """One walk over a traced graph: union-find over groups, and the axes that were met on the way."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.modules = dict(traced.named_modules())
        self.parent = [FIXED]  # union-find; index 0 is FIXED and stays a root
        self.sizes = [0]
        self.names = [""]
        self.flows: dict[fx.Node, Flow] = {}
        self.axes: dict[str, dict[int, Flow]] = {}  # tensor -> axis -> flow

    def run(self) -> PermutationSpec:
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                self.flows[node] = Flow(FIXED)
            elif node.op == "call_module":
                self.flows[node] = self._module(node, self.modules[str(node.target)])
            elif node.op in ("call_function", "call_method"):
                self.flows[node] = self._function(node)
            elif node.op == "output":
                for result in node.all_input_nodes:
                    self._union(self.flows[result].group, FIXED)
            else:
                raise self._unknown(node, "a tensor that is read as an attribute")
        return self._spec()

    def _module(self, node: fx.Node, module: nn.Module) -> Flow:
        flow, path = self._input(node), str(node.target)
        if isinstance(module, nn.Linear):
            if len(_shape(node)) != 2:
                raise self._unknown(node, "a linear layer on more than two axes")
            return self._layer(path, module, flow, module.out_features)
        if isinstance(module, CONVOLUTIONS):
            if module.groups != 1:
                raise self._unknown(node, "a grouped convolution")
            return self._layer(path, module, flow, module.out_channels)
        if isinstance(module, BATCH_NORMS):
            for name in BATCH_NORM_TENSORS:
                if getattr(module, name) is not None:
                    self._assign(f"{path}.{name}", 0, flow)
            return flow
        if isinstance(module, nn.Flatten):
            if module.start_dim != 1 or module.end_dim != -1:
                raise self._unknown(node, "a flatten of other axes than all behind the batch")
            return self._flatten(node, flow)
        if type(module) in CHANNELWISE:
            return flow
        raise self._unknown(node, f"a module of type {type(module).__name__}")

    def _function(self, node: fx.Node) -> Flow:
        target = node.target
        if target in (operator.add, operator.iadd, torch.add, "add", "add_"):
            operands = [arg for arg in node.args if isinstance(arg, fx.Node)]
            flows = [self.flows[operand] for operand in operands]
            if len(flows) == 2 and (_shape(operands[0]) != _shape(operands[1]) or flows[0].block != flows[1].block):
                raise self._unknown(node, "an addition of different shapes")
            for other in flows[1:]:
                self._union(flows[0].group, other.group)
            return flows[0]
        flow = self._input(node)
        if target in (torch.flatten, "flatten"):
            if node.args[1:] not in ((1,), (1, -1)) and node.kwargs != {"start_dim": 1}:
                raise self._unknown(node, "a flatten of other axes than all behind the batch")
            return self._flatten(node, flow)
        if target in CHANNELWISE_FUNCTIONS:
            return flow
        raise self._unknown(node, f"the operation {getattr(target, '__name__', target)}")

    def _input(self, node: fx.Node) -> Flow:
        if len(node.all_input_nodes) != 1:
            raise self._unknown(node, f"an operation on {len(node.all_input_nodes)} tensors")
        return self.flows[node.all_input_nodes[0]]

    def _layer(self, path: str, module: nn.Module, flow: Flow, out_size: int) -> Flow:
        """A layer with weights (out, in, ...) reads the group of its input and starts one at its output."""
        self.parent.append(len(self.parent))
        self.sizes.append(out_size)
        self.names.append(path)
        out = Flow(len(self.parent) - 1)
        self._assign(f"{path}.weight", 0, out)
        self._assign(f"{path}.weight", 1, flow)
        if getattr(module, "bias", None) is not None:
            self._assign(f"{path}.bias", 0, out)
        return out

    def _flatten(self, node: fx.Node, flow: Flow) -> Flow:
        before, after = _shape(node.all_input_nodes[0]), _shape(node)
        return Flow(flow.group, flow.block * (after[1] // before[1]))

    def _assign(self, tensor: str, axis: int, flow: Flow) -> None:
        """File an axis under a group; a module that is used twice makes both of its groups one."""
        known = self.axes.setdefault(tensor, {}).setdefault(axis, flow)
        if known.block != flow.block:
            raise UnknownOperation(f"{tensor} is used with channel blocks of {known.block} and of {flow.block}")
        self._union(known.group, flow.group)

    def _find(self, group: int) -> int:
        while self.parent[group] != group:
            group = self.parent[group]
        return group

    def _union(self, one: int, other: int) -> None:
        low, high = sorted((self._find(one), self._find(other)))
        self.parent[high] = low  # the older name stays, and FIXED always wins

    def _spec(self) -> PermutationSpec:
        sites: dict[int, tuple[bool, str]] = {}  # root -> (is an activation, node); a later one of the same rank wins
        for node, flow in self.flows.items():
            root, rank = self._find(flow.group), self._is_activation(node)
            if root != FIXED and flow.block == 1 and (root not in sites or rank >= sites[root][0]):
                sites[root] = (rank, node.name)
        groups = {root: Group(self.names[root], self.sizes[root], sites[root][1]) for root in sorted(sites)}

        def axis(flow: Flow | None) -> Axis | None:
            root = FIXED if flow is None else self._find(flow.group)
            return None if flow is None or root == FIXED else Axis(groups[root].name, flow.block)

        state = self.traced.state_dict()
        axes = {
            name: tuple(axis(self.axes.get(name, {}).get(dim)) for dim in range(tensor.ndim))
            for name, tensor in state.items()
        }
        return PermutationSpec({group.name: group for group in groups.values()}, axes)

    def _is_activation(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return type(self.modules[str(node.target)]) in ACTIVATIONS
        return node.target in ACTIVATION_FUNCTIONS

    def _unknown(self, node: fx.Node, what: str) -> UnknownOperation:
        lines = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip()]
        place = " / ".join(lines[-2:]) or "no source line known"
        return UnknownOperation(f"node {node.name!r} is {what}, whose symmetry is not known ({place})")


def _shape(node: fx.Node) -> tuple[int, ...]:
    meta: Any = node.meta["tensor_meta"]
    return tuple(meta.shape)
