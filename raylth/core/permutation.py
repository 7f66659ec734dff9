"""Permutations of a network's units, one per symmetry group, and what they do to weights and masks."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from raylth.core.derive import UnknownOperation, derive_spec
from raylth.core.spec import Axis, Group, PermutationSpec
from raylth.seeding import derive_seed

__all__ = [
    "Axis",
    "Group",
    "Permutation",
    "PermutationSpec",
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
            perm = self.perms[name]
            if not torch.equal(perm.sort().values.cpu(), torch.arange(group.size)):
                raise ValueError(f"group {name!r}: not a permutation of its {group.size} units")

    def apply(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state dict whose units stand in the permuted order; the function it computes is unchanged."""
        return {name: self._permute(name, tensor) for name, tensor in state.items()}

    def apply_mask(self, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return pi(mask): each weight's mask moves with the units that the weight connects."""
        return {name: self._permute(name, alive) for name, alive in mask.items()}

    def inverse(self) -> "Permutation":
        """Return the permutation that moves everything back: `p.inverse().apply(p.apply(s))` is `s`, bit for bit."""
        return Permutation(self.spec, {name: perm.argsort() for name, perm in self.perms.items()})

    def compose(self, other: "Permutation") -> "Permutation":
        """Return "first `other`, then this": `p.compose(q).apply(s)` equals `p.apply(q.apply(s))`."""
        return Permutation(self.spec, {name: other.perms[name][perm] for name, perm in self.perms.items()})

    def _permute(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self.spec.axes:
            raise ValueError(f"{name!r} is not a tensor of the network that the permutation belongs to")
        axes = self.spec.axes[name]
        if len(axes) != tensor.ndim:
            raise ValueError(f"{name}: expected {len(axes)} axes, found {tensor.ndim}")
        moved = tensor.clone()
        for dim, axis in enumerate(axes):
            if axis is None:
                continue
            index = _expand(self.perms[axis.group], axis.block).to(tensor.device)
            if tensor.shape[dim] != len(index):
                raise ValueError(f"{name}: axis {dim} has {tensor.shape[dim]} entries, its group needs {len(index)}")
            moved = moved.index_select(dim, index)
        return moved


def identity_permutation(spec: PermutationSpec) -> Permutation:
    """Return the permutation that leaves every unit where it is."""
    return Permutation(spec, {name: torch.arange(group.size) for name, group in spec.groups.items()})


def random_permutation(spec: PermutationSpec, seed: int) -> Permutation:
    """Draw a uniformly random permutation of every group, each from its own stream of `seed`."""
    perms = {}
    for name, group in spec.groups.items():
        generator = torch.Generator().manual_seed(derive_seed(seed, "permutation", name))
        perms[name] = torch.randperm(group.size, generator=generator)
    return Permutation(spec, perms)


def _expand(perm: Tensor, block: int) -> Tensor:
    """Turn unit indices (C,) into entry indices (C * block,), each unit owning `block` entries in a row."""
    if block == 1:
        return perm
    return (perm[:, None] * block + torch.arange(block, device=perm.device)).flatten()
