"""Permutations of a network's units, one per symmetry group, and what they do to weights and masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raylth.common.seeding import derive_seed
from raylth.core.permutation.derive import UnknownOperation, derive_spec
from raylth.core.permutation.spec import Axis, Group, Part, PermutationSpec, Site
from raylth.core.state import like

__all__ = [
    "Axis",
    "Group",
    "Part",
    "Permutation",
    "PermutationSpec",
    "Site",
    "UnknownOperation",
    "derive_spec",
    "identity_permutation",
    "random_permutation",
]


@dataclass(frozen=True)
class Permutation:
    """One permutation per symmetry group of a network.

    Direction: `perms[group][i]` is the unit of A that is placed at position i of B, so `theta_A[perm]` lines up with
    theta_B. `apply` moves A's weights, and `apply_mask` A's mask, to where B's units are.

    Raises ValueError for a group that is missing, unknown, or whose indices are not a permutation of its units.
    """

    spec: PermutationSpec
    perms: Mapping[str, Tensor]  # group -> (size,) int64

    def __post_init__(self) -> None:
        if set(self.perms) != set(self.spec.groups):
            odd = sorted(set(self.perms) ^ set(self.spec.groups))
            raise ValueError(f"a permutation has one entry per group; {odd[0]!r} is missing or unknown")
        for name, group in self.spec.groups.items():
            perm = self.perms[name].cpu()
            if not torch.equal(perm.sort().values, torch.arange(group.size)):
                raise ValueError(f"group {name!r}: not a permutation of its {group.size} units")
            if group.within and not self._is_inside(name, group.within[-1]):
                raise ValueError(f"group {name!r}: its units must move with those of {group.within[-1]!r} that they are in")

    def _is_inside(self, name: str, outer: str) -> bool:
        """Whether the units of a group stay together as those of the group that they are within move."""
        inner = self.spec.inner_size(name)
        owners = self.perms[name].cpu().view(-1, inner) // inner
        return torch.equal(owners, self.perms[outer].cpu()[:, None].expand_as(owners))

    def apply(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state dict whose units are in the permuted order; the function it computes is unchanged.

        It can be loaded wherever `state` can.
        """
        return like({name: self._permute(name, tensor) for name, tensor in state.items()}, state)

    def apply_mask(self, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return pi(mask): each weight's mask moves with the units that the weight connects."""
        return {name: self._permute(name, alive) for name, alive in mask.items()}

    def inverse(self) -> "Permutation":
        """Return the permutation that moves everything back: `p.inverse().apply(p.apply(s))` is `s`, bit for bit."""
        return Permutation(self.spec, {name: perm.argsort() for name, perm in self.perms.items()})

    def compose(self, other: "Permutation") -> "Permutation":
        """Return "first `other`, then this": `p.compose(q).apply(s)` equals `p.apply(q.apply(s))`."""
        return Permutation(self.spec, {name: other.perms[name][perm] for name, perm in self.perms.items()})

    def distance(self, other: "Permutation") -> dict[str, float]:
        """Return the share of units, per group, that this permutation and `other` place differently (Hamming), in [0, 1]."""
        return {name: float((perm != other.perms[name]).double().mean()) for name, perm in self.perms.items()}

    def fixed_share(self) -> dict[str, float]:
        """Return the share of units, per group, that stay where they are, in [0, 1]."""
        return {name: 1.0 - moved for name, moved in self.distance(identity_permutation(self.spec)).items()}

    def apply_optimizer(self, state: Mapping[str, Any], parameters: Sequence[str]) -> dict[str, Any]:
        """Return an optimizer's `state_dict()` whose buffers move with the weights that they belong to.

        `parameters` are the parameters' names in the optimizer's order. Tensors shaped like their parameter (momentum,
        Adam's moments) move; step counts and everything else stay. Raises ValueError for a wrong number of names.
        """
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        if len(numbers) != len(parameters):
            raise ValueError(f"the optimizer has {len(numbers)} parameters, {len(parameters)} names were given")
        name_of = dict(zip(numbers, parameters, strict=True))

        def move(number: int, value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            is_buffer = value.ndim == len(self.spec.axes[name_of[number]]) > 0
            return self._permute(name_of[number], value) if is_buffer else value.clone()  # nothing is shared

        moved = {n: {key: move(n, value) for key, value in entry.items()} for n, entry in state["state"].items()}
        return {**state, "state": moved}

    def _permute(self, name: str, tensor: Tensor) -> Tensor:
        return permute(self.spec, name, tensor, self.perms)


def permute(spec: PermutationSpec, name: str, tensor: Tensor, perms: Mapping[str, Tensor]) -> Tensor:
    """Return the network's tensor `name` with its units moved by `perms`, group -> (size,) int64.

    Raises ValueError for a tensor that is not one of the network's, or has another shape.
    """
    if name not in spec.axes:
        raise ValueError(f"{name!r} is not a tensor of the network that the permutation belongs to")
    axes = spec.axes[name]
    if len(axes) != tensor.ndim:
        raise ValueError(f"{name}: expected {len(axes)} axes, found {tensor.ndim}")
    orders = [spec.order(name, dim, perms) for dim in range(len(axes))]
    moved = tensor.clone()
    for dim, order in enumerate(orders):
        if order is None:
            continue
        if tensor.shape[dim] != (length := order.shape[dim if order.ndim > 1 else 0]):
            raise ValueError(f"{name}: axis {dim} has {tensor.shape[dim]} entries, its groups need {length}")
        if order.ndim == 1:
            moved = moved.index_select(dim, order.to(tensor.device))
    for dim, order in enumerate(orders):
        if order is not None and order.ndim > 1:  # depends on axes that are in their new order now
            moved = moved.take_along_dim(order.to(tensor.device), dim)
    return moved


def identity_permutation(spec: PermutationSpec) -> Permutation:
    """Return the permutation that leaves every unit where it is."""
    return Permutation(spec, {name: torch.arange(group.size) for name, group in spec.groups.items()})


def random_permutation(spec: PermutationSpec, seed: int) -> Permutation:
    """Draw a uniformly random permutation of every group, each from its own stream of `seed`."""
    perms: dict[str, Tensor] = {}
    for name in outer_first(spec.groups):
        group = spec.groups[name]
        generator = torch.Generator().manual_seed(derive_seed(seed, "permutation", name))
        inner = spec.inner_size(name)
        order = torch.stack([torch.randperm(inner, generator=generator) for _ in range(group.size // inner)])
        first = perms[group.within[-1]] if group.within else torch.zeros(1, dtype=torch.int64)
        perms[name] = (first[:, None] * inner + order).flatten()
    return Permutation(spec, {name: perms[name] for name in spec.groups})


def outer_first(groups: Mapping[str, Group]) -> list[str]:
    """Return the groups' names, those that others are within first."""
    return sorted(groups, key=lambda name: len(groups[name].within))
