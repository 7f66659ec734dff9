"""A small language model: tied embeddings, RMSNorm, causal attention, gated MLPs, rotary or learned positions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raylth.core.masks import full_mask
from raylth.core.matching import match_activations, match_weights
from raylth.core.permutation import derive_spec, random_permutation
from raylth.core.tensors import tied_names

WORDS, WIDTH, HEADS, KEYS, LENGTH = 30, 32, 4, 2, 6
INNER = WIDTH // HEADS


class Attention(nn.Module):
    """Causal attention whose heads share keys and values in pairs."""

    def __init__(self, rotary):
        super().__init__()
        self.q, self.out = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.k, self.v = (nn.Linear(WIDTH, KEYS * INNER, bias=False) for _ in range(2))
        self.rotary = rotary
        angles = torch.arange(LENGTH)[:, None] / 10.0 ** (torch.arange(0, INNER, 2) / INNER)
        self.register_buffer("cos", torch.cat([angles.cos()] * 2, dim=1), persistent=False)
        self.register_buffer("sin", torch.cat([angles.sin()] * 2, dim=1), persistent=False)

    def turned(self, x):
        one, other = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-other, one], dim=-1) * self.sin

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = (layer(x).view(batch, length, -1, INNER).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.rotary:
            q, k = self.turned(q), self.turned(k)
        k, v = (each.repeat_interleave(HEADS // KEYS, dim=1) for each in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))


class Block(nn.Module):
    def __init__(self, rotary):
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.RMSNorm(WIDTH), Attention(rotary), nn.RMSNorm(WIDTH)
        self.gate, self.up, self.down = nn.Linear(WIDTH, 20), nn.Linear(WIDTH, 20), nn.Linear(20, WIDTH)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        hidden = self.norm2(x)
        return x + self.down(F.silu(self.gate(hidden)) * self.up(hidden))


class GPT(nn.Module):
    def __init__(self, rotary=False):
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = None if rotary else nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(Block(rotary), Block(rotary))
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        x = self.words(tokens)
        if self.places is not None:
            x = x + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.norm(self.blocks(x)))


def build(rotary, seed=0):
    torch.manual_seed(seed)
    model = GPT(rotary).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("rotary", [False, True])
def test_its_function_stays_and_every_matcher_finds_what_was_planted(rotary):
    model, tokens = build(rotary), torch.randint(0, WORDS, (8, LENGTH))
    spec = derive_spec(model, tokens)
    assert tied_names(model) == {"head.weight": "words.weight"}
    inner = [spec.inner_size(name) for name, group in spec.groups.items() if group.within and name.startswith("blocks.0")]
    heads, queries, values = HEADS // KEYS, INNER, INNER  # heads in each pair, units in each
    expected = [heads, values] if rotary else [heads, queries, values]
    assert sorted(inner) == sorted(expected), "rotary positions give each unit of q and k a place of its own"
    planted = random_permutation(spec, 1)
    moved = build(rotary, 1)
    moved.load_state_dict(planted.apply(model.state_dict()))
    assert torch.equal(moved.head.weight, moved.words.weight)
    with torch.no_grad():
        torch.testing.assert_close(moved(tokens), model(tokens), rtol=1e-9, atol=1e-9)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(moved.state_dict()[name], tensor)]
    assert len(changed) > 10
    batches = torch.randint(0, WORDS, (64, LENGTH)).split(32)
    found = {
        "weight": match_weights(model.state_dict(), moved.state_dict(), spec, 0),
        "activation": match_activations(model, moved, spec, batches),
    }
    for method, result in found.items():
        for group, perm in planted.perms.items():
            assert torch.equal(result.permutation.perms[group], perm), (method, group)


def test_its_embeddings_stay_dense():
    assert "head.weight" not in full_mask(build(False))
    assert "words.weight" not in full_mask(build(False))
    assert len(full_mask(build(False))) == 2 * 7
