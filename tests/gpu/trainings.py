"""Networks, data and trainings of the tests of a GPU. Needs torch alone."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raylth.core.data.dataset import ArraySplit
from raylth.core.masks import full_mask
from raylth.core.models import init_model
from raylth.core.training.engines.program import make_program
from raylth.core.training.loop import Diverged, train, train_together
from raylth.core.training.packing import Program
from raylth.core.training.recipe import Recipe

COUNT = 70  # samples: an epoch is two batches of 32 and a ragged one of 6
STEPS = 3  # of an epoch


class Attention(nn.Module):
    """What a `Pack` cannot stack: attention, layer norm, a class token; 40 inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Linear(8, 16), nn.Parameter(torch.zeros(1, 1, 16))
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.view(len(x), 5, 8))
        return self.head(self.block(torch.cat([self.token.expand(len(x), -1, -1), tokens], 1))[:, 0])


class Small(nn.Module):
    """Two convolutions with batch norm and a sum: quick to compile."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.bn1(self.conv1(x)))
        x = torch.relu_(self.bn2(self.conv2(x)) + x)
        return self.head(torch.flatten(self.pool(x), 1))


class Dropping(nn.Module):
    """Draws random numbers twice in a step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(40, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.relu(self.first(x)))
        return self.head(self.drop(torch.relu(self.second(x))))


def seeded(kind: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return kind()

    return build


def registered(name: str, width: float, in_shape: tuple[int, ...]) -> Callable[[int], nn.Module]:
    return lambda seed: init_model(seed, name, width=width, num_classes=10, in_shape=in_shape)


NETWORKS: dict[str, tuple[tuple[int, ...], Callable[[int], nn.Module]]] = {
    "mlp": ((40,), registered("mlp", 0.25, (40,))),
    "resnet20": ((3, 8, 8), registered("resnet20", 0.25, (3, 8, 8))),
    "vgg11": ((3, 32, 32), registered("vgg11", 0.125, (3, 32, 32))),
    "attention": ((40,), seeded(Attention)),
    "small": ((3, 8, 8), seeded(Small)),
    "dropout": ((40,), seeded(Dropping)),
}


def random_split(in_shape: tuple[int, ...], device: torch.device, count: int = COUNT, seed: int = 0) -> ArraySplit:
    """Return random samples on a device, images in counts with a normalisation as real ones have."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 10, (count,), generator=draw).to(device)
    if len(in_shape) == 1:
        return ArraySplit(torch.randn(count, *in_shape, generator=draw).to(device), y)
    x = torch.randint(0, 256, (count, *in_shape), generator=draw, dtype=torch.uint8).to(device)
    mean, std = torch.tensor([120.0, 130.0, 110.0], device=device), torch.tensor([60.0, 70.0, 65.0], device=device)
    return ArraySplit(x, y, mean.view(3, 1, 1), std.view(3, 1, 1))


def networks_of(name: str, size: int, device: torch.device) -> list[nn.Module]:
    return [NETWORKS[name][1](seed).to(device) for seed in range(size)]


def masks_of(networks: Sequence[nn.Module]) -> list[dict[str, Tensor]]:
    """Return a mask for each network, each of its own sparsity, on the CPU."""
    draw = torch.Generator().manual_seed(1)
    return [
        {name: torch.rand(alive.shape, generator=draw) < 0.7 - 0.1 * number for name, alive in full_mask(network).items()}
        for number, network in enumerate(networks)
    ]


def augmentation_of(name: str) -> str:
    return "flip_crop" if len(NETWORKS[name][0]) == 3 else "none"


def run(
    name: str, engine: str, size: int, device: torch.device, recipe: Recipe, *, masked: bool = True, count: int = COUNT,
    **options: Any,
) -> tuple[Program, list[nn.Module], list[list[float] | Diverged]]:  # fmt: skip
    """Train networks of a name as one program, each with its own seed and mask."""
    networks = networks_of(name, size, device)
    masks: Sequence[dict[str, Tensor] | None] = masks_of(networks) if masked else [None] * size
    program = make_program(networks, engine)  # type: ignore[arg-type]
    found = train_together(
        program, random_split(NETWORKS[name][0], device, count), recipe, seeds=[10 + n for n in range(size)],
        augment=augmentation_of(name), masks=masks, **options,
    )  # fmt: skip
    return program, networks, found


def alone(
    name: str, size: int, device: torch.device, recipe: Recipe, *, masked: bool = True
) -> tuple[list[nn.Module], list[list[float]]]:
    """Train the same networks one after another by the plain loop."""
    networks = networks_of(name, size, device)
    masks: Sequence[dict[str, Tensor] | None] = masks_of(networks) if masked else [None] * size
    split = random_split(NETWORKS[name][0], device)
    losses = [
        train(network, split, recipe, seed=10 + n, augment=augmentation_of(name), mask=mask)
        for n, (network, mask) in enumerate(zip(networks, masks, strict=True))
    ]
    return networks, losses


def assert_same_bits(expected: Sequence[nn.Module], found: Sequence[nn.Module]) -> None:
    """Fail with the tensors that differ, of which member and by how much: the first ones tell where it began."""
    differ = []
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        state = other.state_dict()
        for name, tensor in one.state_dict().items():
            if not torch.equal(tensor, state[name]):
                apart = float((tensor.double() - state[name].double()).abs().max())
                differ.append(f"member {number} {name} by {apart:.2g} of {float(tensor.double().abs().max()):.2g}")
    assert not differ, f"{len(differ)} tensors differ: " + "; ".join(differ[:12])
