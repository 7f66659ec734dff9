"""Pinned numbers: what each network of the package trains to, so that numerics cannot drift without a new version.

They hold within rounding on any CPU. Where one changes on purpose, raise VERSION in raylth/stages/stage.py and pin it anew.
"""

import numpy as np
import pytest
import torch

from raylth.core.data.dataset import ArraySplit
from raylth.core.masks import full_mask
from raylth.core.models import MODELS, init_model
from raylth.core.pruning import prune_global_magnitude
from raylth.core.training.loop import Recipe, train

SHAPES = {"mlp": (40,), "resnet20": (3, 16, 16), "vgg11": (3, 32, 32), "resnet50": (3, 64, 64), "vit": (3, 16, 16)}
CURVES = {  # training loss of each epoch in nats, and the sum of all magnitudes
    "mlp": ([2.79539, 2.76032, 2.64795], 554.0742),
    "resnet20": ([3.27261, 3.10246, 2.84129], 1942.934),
    "vgg11": ([3.9675, 2.3882, 2.01267], 17541.43),
    "resnet50": ([2.86444, 2.86931, 2.76], 90786.58),
    "vit": ([2.70892, 1.87769, 1.67948], 11469.03),
}
RATES = {"resnet50": 1e-5}  # so narrow, float32 gives its gradients to 1 % only, and steps would lead elsewhere on each CPU
TOLERANCES = {"resnet50": 2e-2}


def samples(in_shape: tuple[int, ...], count: int = 100) -> ArraySplit:
    """Return noise whose mean shows its class."""
    y = torch.arange(count) * 7 % 10
    x = np.random.default_rng(0).standard_normal((count, *in_shape))
    return ArraySplit((torch.tensor(x) + (y / 5 - 0.9).reshape(-1, *[1] * len(in_shape))).float(), y)


def trained(name: str) -> tuple[list[float], float]:
    """Train a narrow network of a kind, half of it pruned, for a few steps."""
    model, split = init_model(3, name, width=0.25, num_classes=10, in_shape=SHAPES[name]), samples(SHAPES[name])
    mask = prune_global_magnitude(model.state_dict(), full_mask(model), fraction=0.5)
    recipe = Recipe(3, lr=RATES.get(name, 0.005), batch_size=32, weight_decay=5e-4, warmup_epochs=1)
    losses = train(model, split, recipe, seed=1, mask=mask)
    return losses, sum(float(tensor.detach().double().abs().sum()) for tensor in model.parameters())


def test_every_network_of_the_package_is_pinned():
    assert set(CURVES) == set(SHAPES) == {name for name in MODELS if ":" not in name}


@pytest.mark.parametrize("name", SHAPES)
def test_a_training_ends_where_it_always_did(name):
    losses, total = trained(name)
    expected, expected_total = CURVES[name]
    assert losses == pytest.approx(expected, rel=TOLERANCES.get(name, 1e-3))
    assert total == pytest.approx(expected_total, rel=1e-4)
