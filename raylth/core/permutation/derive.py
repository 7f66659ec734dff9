"""Derives a network's permutation symmetry from the network itself: nothing is written by hand per architecture.

The network is exported to a graph of ATen operations, and what each axis of each tensor stands for is followed from operation
to operation (`follow.py`). A layer with weights starts new units at its output and reads its input's; an addition or a gate
makes two axes one; a reshape into heads nests the units of each head in the heads; a convolution in groups nests its channels
in them. An operation that is not known stops the derivation: it never guesses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from raylth.core.exporting import export
from raylth.core.graph import UnknownOperation
from raylth.core.permutation import operations
from raylth.core.permutation.atoms import Atom, Layout, parents
from raylth.core.permutation.follow import ACTIVATIONS, Follower, is_tensor, operation, rule
from raylth.core.permutation.pieces import Piece, layouts_of, pieces
from raylth.core.permutation.spec import Axis, Group, Part, PermutationSpec, Site
from raylth.core.program import program_of
from raylth.core.tensors import check_tensors, tied_names

__all__ = ["UnknownOperation", "derive_spec", "operations", "rule"]


def derive_spec(model: nn.Module, example_input: Tensor) -> PermutationSpec:
    """Derive the permutation groups of `model` from its exported program.

    `example_input` is a batch (B, *in_shape) that the network accepts; only its shape matters. Where the network computes
    something else in training (auxiliary classifiers), both programs bind the groups. Each group's site is its last
    activation in the evaluation program, so a residual stream is watched at its last block's output.
    Raises UnknownOperation for an operation without a rule, with its name and source line, or a forward pass whose course
    depends on the data; ValueError for tensors that cannot be permuted one by one (`check_tensors`).
    """
    check_tensors(model)
    tensors: dict[str, Layout] = {}
    follower = Follower(export(model, example_input), tensors)
    follower.run()
    training = export(model, example_input, training=True)
    if _text(training) != _text(follower.program):
        Follower(training, tensors).run()
    spec = _tied(_Assembly(follower, model.state_dict()).spec(), tied_names(model))
    return replace(spec, program=program_of(model, example_input, follower.program))


def _tied(spec: PermutationSpec, names: Mapping[str, str]) -> PermutationSpec:
    """Give each name of a tied weight the same axes: the program reads it under one of its names."""
    axes = dict(spec.axes)
    for first in names.values():
        shared = [first, *(name for name, other in names.items() if other == first)]
        found = next((axes[name] for name in shared if any(axes[name])), axes[first])
        axes.update(dict.fromkeys(shared, found))
    return replace(spec, axes=axes, tied=tuple(names))


def _text(program: ExportedProgram) -> list[tuple[str, list[str]]]:
    """Return a program's operations and what they read, by which evaluation and training are compared."""
    calls = [node for node in program.graph.nodes if node.op == "call_function" and operation(node) != "aten.dropout"]
    return [(operation(node), [source.name for source in node.all_input_nodes]) for node in calls]


class _Assembly:
    """Puts together what a walk has found."""

    def __init__(self, follower: Follower, state: Mapping[str, Tensor]) -> None:
        self.follower, self.state = follower, state
        layouts = {name: layout for name, layout in layouts_of(follower.tensors).items() if name in state}
        self.pieces = {name: pieces(layout) for name, layout in layouts.items()}
        found = {atom for axes in self.pieces.values() for axis in axes for piece in axis for atom in piece.atoms if atom}
        for atom in list(found):
            found |= set(_chain(atom))
        self.seen = self._seen(found)
        watched = {_root(atom) for atom in self.seen}  # what is computed in training only cannot be watched, and stays
        self.atoms = sorted((atom for atom in found if _root(atom) in watched), key=lambda atom: (atom.origin, atom.number))
        self.names = _unique(self.atoms)

    def spec(self) -> PermutationSpec:
        """Return the network's symmetry."""
        groups = {}
        for atom in self.atoms:
            name, chain = self.names[atom], _chain(atom)
            size = atom.size * prod(parent.size for parent in chain)
            best = _best_sites([self._site(atom, *each) for each in self._apart(atom)])
            within = tuple(self.names[parent] for parent in chain)
            groups[name] = Group(name, size, best, best[-1] if best else None, within)
        axes = {name: self._axes(name, tensor.ndim) for name, tensor in self.state.items()}
        return PermutationSpec(groups, axes)

    def _axes(self, name: str, ndim: int) -> tuple[Axis | None, ...]:
        result: list[Axis | None] = []
        for axis in self.pieces.get(name, [[]] * ndim):
            parts = tuple(self._part(piece) for piece in axis)
            result.append(Axis(parts) if any(any(part.groups) for part in parts) else None)
        return tuple(result)

    def _part(self, piece: Piece) -> Part:
        start = int(piece.entries.flatten()[0])
        strides = [
            int(piece.entries.select(place, 1).flatten()[0]) - start if length > 1 else 0
            for place, length in enumerate(piece.entries.shape)
        ]
        groups = tuple(self.names.get(atom) if atom else None for atom in piece.atoms)
        beside = tuple((dim, self._part(other)) for dim, other in piece.beside)
        part = Part(groups, tuple(piece.entries.shape), tuple(strides), start, beside)
        assert bool((part.entries() == piece.entries).all()), "a part that is no grid"
        return part

    def _seen(self, atoms: set[Atom]) -> dict[Atom, list[tuple[fx.Node, int, Piece]]]:
        """Return where each group's units can all be seen on one axis of an operation's output, in the program's order."""
        seen: dict[Atom, list[tuple[fx.Node, int, Piece]]] = {}
        self.moving: dict[fx.Node, list[set[Atom]]] = {}  # node -> groups whose units each axis of its output holds
        for node in self.follower.program.graph.nodes:
            if node.op != "call_function" or not is_tensor(node):
                continue
            axes = pieces(self.follower.layout(node))
            self.moving[node] = [{atom for piece in found for atom in piece.atoms if atom in atoms} for found in axes]
            for axis, found in enumerate(axes):
                for piece in found:
                    for atom in piece.atoms:
                        if atom in atoms and not piece.beside and all(parent in piece.atoms for parent in _chain(atom)):
                            seen.setdefault(atom, []).append((node, axis, piece))
        return seen

    def _apart(self, atom: Atom) -> list[tuple[fx.Node, int, Piece]]:
        """Return where a group is seen with the least of what other groups order: on other axes, and on the same one."""
        seen = self.seen.get(atom, [])
        if not seen:
            return []
        own = {atom, *_chain(atom)}

        def orders(node: fx.Node, axis: int, piece: Piece) -> tuple[int, int]:
            others = [found for place, found in enumerate(self.moving[node]) if place != axis]
            return len(set().union(*others)), len(set(piece.atoms) & self.names.keys() - own)

        counts = [orders(*each) for each in seen]
        return [each for each, count in zip(seen, counts, strict=True) if count == min(counts)]

    def _site(self, atom: Atom, node: fx.Node, axis: int, piece: Piece) -> tuple[Site, bool, int]:
        """Return a site, whether it lies behind an activation function, and how many positions each unit has there."""
        shape = self.follower.shape(node)
        units = [self.names[each] for each in (*_chain(atom), atom)]
        is_active = operation(node) in ACTIVATIONS
        before = node.all_input_nodes[0].name if is_active else None
        return Site(node.name, axis, self._part(piece).led_by(units), before), is_active, prod(shape[1:]) // shape[axis]


def _chain(atom: Atom) -> list[Atom]:
    """Return what an atom is nested in, the outermost first."""
    found = [parent for parent in parents(atom) if isinstance(parent, Atom) and not parent.fixed]
    return sorted(found, key=lambda parent: len(parents(parent)))


def _root(atom: Atom) -> Atom:
    return _chain(atom)[0] if _chain(atom) else atom


def _unique(atoms: Sequence[Atom]) -> dict[Atom, str]:
    """Return a name for each atom."""
    names: dict[Atom, str] = {}
    taken: set[str] = set()
    for atom in atoms:
        name, number = atom.name, 1
        while name in taken:
            number += 1
            name = f"{atom.name}#{number}"
        taken.add(name)
        names[atom] = name
    return names


def _best_sites(seen: list[tuple[Site, bool, int]]) -> tuple[Site, ...]:
    """Keep where units are least merged with positions, and behind activations if there are any, else on the largest maps.

    Maps of a single position are passed over where there are others: the gates of a squeeze-excite block share the group
    of what they multiply, but say little of each unit.
    """
    if not seen:
        return ()
    block = min(_block(site) for site, _, _ in seen)
    seen = [entry for entry in seen if _block(entry[0]) == block]
    seen = [entry for entry in seen if entry[1]] or seen
    gates_passed_over = [entry for entry in seen if entry[2] > 1]
    largest = max(positions for _, _, positions in seen)
    if not seen[0][1]:
        seen = [entry for entry in seen if entry[2] == largest]
    elif gates_passed_over:
        seen = gates_passed_over
    return tuple(site for site, _, _ in seen)


def _block(site: Site) -> int:
    return prod(size for name, size in zip(site.part.groups, site.part.sizes, strict=True) if name is None)
