"""Random flip and padded crop of a whole batch, drawn per (seed, epoch, sample) and never from a shared generator."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raylth.common.seeding import derive_seed

__all__ = ["PADDING", "Augmentation", "flip_and_crop"]

PADDING = 4  # pixels on each side, the usual CIFAR recipe (paper, appendix)


def flip_and_crop(x: Tensor, flip: Tensor, top: Tensor, left: Tensor, padding: int = PADDING) -> Tensor:
    """Flip and crop each image of a batch by its own draw, with two gathers and no loop.

    `x`: (B, C, H, W) of any type; `flip`: (B,) bool; `top`, `left`: (B,) int64 in [0, 2 * padding], the corner of the
    crop in the image padded by `padding` zeros on each side (in the units of x). Returns a new (B, C, H, W) tensor.
    """
    batch, _, height, width = x.shape
    padded = F.pad(x, (padding, padding, padding, padding))
    rows = top[:, None] + torch.arange(height, device=x.device)  # (B, H)
    columns = torch.arange(width, device=x.device).expand(batch, width)
    columns = left[:, None] + torch.where(flip[:, None], columns.flip(1), columns)  # (B, W)
    index = torch.arange(batch, device=x.device)
    # Indexing with (B, 1, 1), (B, H, 1), (B, 1, W) around the channel slice gives (B, H, W, C).
    return padded[index[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Augmentation:
    """The draws of one epoch for every sample of a split: sample i gets the same draw whatever batch it lands in."""

    flip: Tensor  # (N,) bool; (K, N) for K members
    top: Tensor  # (N,) int64, or (K, N)
    left: Tensor  # (N,) int64, or (K, N)

    @classmethod
    def draw(cls, num_samples: int, seed: int, epoch: int, device: torch.device) -> "Augmentation":
        """Draw flips (probability one half) and crop corners for epoch `epoch` (0-based) of the stream `seed`."""
        generator = torch.Generator().manual_seed(derive_seed(seed, "augment", epoch))
        flip = torch.rand(num_samples, generator=generator) < 0.5
        corner = torch.randint(0, 2 * PADDING + 1, (2, num_samples), generator=generator)
        return cls(flip.to(device), corner[0].to(device), corner[1].to(device))

    @classmethod
    def side_by_side(cls, members: Sequence["Augmentation"]) -> "Augmentation":
        """Join the draws of K members."""
        if len(members) == 1:
            return members[0]
        parts = (torch.stack([getattr(member, name) for member in members]) for name in ("flip", "top", "left"))
        return cls(*parts)

    def to(self, place: Callable[[Tensor], Tensor]) -> "Augmentation":
        """Return the same draws, each tensor put where `place` puts it."""
        return Augmentation(place(self.flip), place(self.top), place(self.left))

    def __call__(self, x: Tensor, index: Tensor, member: Tensor | None = None) -> Tensor:
        """Augment the samples `x` (B, C, H, W), those at `index` (B,) of the split, for the members `member` (B,)."""
        at = index if member is None or self.flip.ndim == 1 else (member, index)
        return flip_and_crop(x, self.flip[at], self.top[at], self.left[at])
