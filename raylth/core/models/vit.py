"""A vision transformer (Dosovitskiy et al., 2021): pre-norm blocks, a class token, learned positions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raylth.core.models.base import MODELS, channels

__all__ = ["ViT", "vit"]

LARGEST = {"depth": 1000, "heads": 10_000, "patch": 10_000, "dim": 100_000, "mlp_ratio": 100}
DEVIATION = 0.02  # of the positions and the class token at the start


class Attention(nn.Module):
    """Self-attention of `heads` heads over tokens (B, N, dim)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, dim) to (B, N, dim)."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, dim / heads) each
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, dim))


class Block(nn.Module):
    """Attention and an MLP, each behind a layer norm and beside a residual connection."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, dim) to (B, N, dim)."""
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Patches of an image (C, H, W) as tokens of `dim` channels, `depth` blocks, and a linear head on the class token."""

    def __init__(
        self, in_shape: tuple[int, int, int], num_classes: int, *, dim: int, depth: int, heads: int, patch: int, hidden: int
    ) -> None:
        super().__init__()
        size, height, width = in_shape
        self.patch_embed = nn.Conv2d(size, dim, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, (height // patch) * (width // patch) + 1, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        """Draw the weights by Glorot and Bengio's uniform law, biases 0, as is usual for transformers."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.cls_token, std=DEVIATION)
        nn.init.normal_(self.pos_embed, std=DEVIATION)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)  # (B, patches, dim)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


@MODELS.register("vit")
def vit(
    *,
    width: float,
    num_classes: int,
    in_shape: tuple[int, ...],
    depth: int = 6,
    heads: int = 3,
    patch: int = 4,
    dim: int = 192,
    mlp_ratio: float = 4,
) -> ViT:
    """Build a ViT of `dim` x width channels; the defaults are those of ViT-Ti at half its depth.

    Raises ValueError for images that the patches do not fill, and channels that the heads do not share evenly.
    """
    if len(in_shape) != 3:
        raise ValueError(f"a vision transformer takes images (C, H, W), not samples of shape {in_shape}")
    for name, value in (("depth", depth), ("heads", heads), ("patch", patch), ("dim", dim)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST[name]:
            raise ValueError(f"{name} must be a whole number from 1 to {LARGEST[name]:,}, not {value!r}")
    if not isinstance(mlp_ratio, int | float) or not 0 < mlp_ratio <= LARGEST["mlp_ratio"]:
        raise ValueError(f"mlp_ratio must be a number above 0, of at most {LARGEST['mlp_ratio']}, not {mlp_ratio!r}")
    scaled = channels(dim, width)
    if in_shape[1] % patch or in_shape[2] % patch:
        raise ValueError(f"patches of {patch} pixels do not fill images of {in_shape[1]} x {in_shape[2]}")
    if scaled % heads:
        raise ValueError(f"{heads} heads do not share {scaled} channels evenly (dim {dim} at width {width:g})")
    hidden = round(scaled * mlp_ratio)
    if hidden < 1 or abs(scaled * mlp_ratio - hidden) > 1e-6:
        raise ValueError(f"mlp_ratio {mlp_ratio:g} of {scaled} channels is {scaled * mlp_ratio:g}: it must be a whole number")
    size, height, breadth = in_shape
    return ViT((size, height, breadth), num_classes, dim=scaled, depth=depth, heads=heads, patch=patch, hidden=hidden)
