"""Derives a network's permutation symmetry from the network itself: nothing is written by hand per architecture.

The network is traced with torch.fx and the owner of every channel followed from node to node. A layer with weights starts
a new group at its output and reads its input's; what works channel by channel hands the groups on; an addition or a gate
makes two groups one; a grouped convolution lets whole convolution groups move. What each operation does stands in
`rules.py`; one that has no rule stops the derivation: it never guesses.
"""

from torch import Tensor, fx, nn

from raylth.core.graph import UnknownOperation, text_of, trace
from raylth.core.permutation import rules
from raylth.core.permutation.axes import FIXED, Entries
from raylth.core.permutation.propagate import ACTIVATIONS, Walk, known_as, rule
from raylth.core.permutation.spec import Axis, Group, Part, PermutationSpec, Site
from raylth.core.tensors import check_tensors

__all__ = ["UnknownOperation", "derive_spec", "rule", "rules"]


def derive_spec(model: nn.Module, example_input: Tensor) -> PermutationSpec:
    """Derive the permutation groups of `model` from its traced graph.

    `example_input` is a batch (B, *in_shape) that the network accepts; only its shape matters. Where the network
    computes something else in training (auxiliary classifiers), both graphs bind the groups. Each group's site is its
    last activation in the evaluation graph, so the units of a residual stream are compared at its last block's output.
    Raises UnknownOperation for an operation without a rule, with its name and source line, or a forward pass whose
    course depends on the data; ValueError for tensors that cannot be permuted one by one (`check_tensors`).
    """
    check_tensors(model)
    try:
        return _spec(_walk(model, example_input))
    except UnknownOperation:
        return _spec(_walk(model, example_input, lines=True))  # fails again, and says where


def _walk(model: nn.Module, example_input: Tensor, lines: bool = False) -> Walk:
    """Follow the network as it computes in evaluation and, where that is something else, in training."""
    evaluation, training = trace(model, lines=lines), trace(model, training=True, lines=lines)
    walk = Walk(evaluation, model.state_dict(), example_input)
    walk.run()
    if text_of(training) != text_of(evaluation):
        other = Walk(training, model.state_dict(), example_input, walk)
        other.run()
    return walk


def _spec(walk: Walk) -> PermutationSpec:
    """Return what a walk has found."""
    seen: dict[int, list[tuple[Site, bool, int]]] = {}
    for node, layout in walk.layouts.items():
        if node.op in ("placeholder", "get_attr"):
            continue
        for dim, entries in enumerate(layout):
            start = 0
            for owner, length in walk.units.expand(entries):
                root = walk.units.find(owner)
                if root != FIXED:
                    seen.setdefault(root, []).append(_site(walk, node, dim, start, length, root))
                start += length
    groups = {}
    for root in sorted(seen):
        sites, name = _best_sites(seen[root]), walk.units.name(root)
        groups[root] = Group(name, walk.units.units(root), sites, sites[-1])

    assert len({group.name for group in groups.values()}) == len(groups), "two groups of one name"

    def axis(entries: Entries) -> Axis | None:
        parts = []
        for owner, length in walk.units.expand(entries):
            group = groups.get(walk.units.find(owner))
            parts.append(Part(group.name, length, length // group.size) if group else Part(None, length))
        return Axis(tuple(parts)) if any(part.group for part in parts) else None

    axes = {
        name: tuple(axis(walk.axes.get((name, dim))) for dim in range(tensor.ndim)) for name, tensor in walk.tensors.items()
    }
    return PermutationSpec({group.name: group for group in groups.values()}, axes)


def _site(walk: Walk, node: fx.Node, axis: int, start: int, length: int, root: int) -> tuple[Site, bool, int]:
    """Return a site, whether it lies behind an activation function, and how many positions each unit has there."""
    shape = walk.shape(node)
    active = known_as(node, walk.modules) in ACTIVATIONS
    before = node.all_input_nodes[0].name if active else None
    positions = 1
    for size in shape[1:]:
        positions *= size
    site = Site(node.name, axis, start, length, length // walk.units.units(root), before)
    return site, active, positions // shape[axis]


def _best_sites(seen: list[tuple[Site, bool, int]]) -> tuple[Site, ...]:
    """Keep where units are least merged with positions, and behind activations if there are any, else on the largest maps.

    Maps of a single position are passed over where there are others: the gates of a squeeze-excite block share the group
    of what they multiply, but say little of each unit.
    """
    block = min(site.block for site, _, _ in seen)
    seen = [entry for entry in seen if entry[0].block == block]
    seen = [entry for entry in seen if entry[1]] or seen
    gates_passed_over = [entry for entry in seen if entry[2] > 1]
    largest = max(positions for _, _, positions in seen)
    if not seen[0][1]:
        seen = [entry for entry in seen if entry[2] == largest]
    elif gates_passed_over:
        seen = gates_passed_over
    return tuple(site for site, _, _ in seen)
