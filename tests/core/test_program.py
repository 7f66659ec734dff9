"""A program, as data, computes what its network computes."""

import pytest
import timm
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import nn

from raylth.core.matching import match_activations
from raylth.core.models import init_model
from raylth.core.permutation import derive_spec, random_permutation
from raylth.core.program import Program, Run, architecture_of, program_of

JSON = TypeAdapter(Program)


def mlp(seed):
    return init_model(seed, "mlp", width=0.125, num_classes=3, in_shape=(8,))


def outputs(program, network, x):
    run = Run(program, network.eval())
    run.begin(x)
    with torch.inference_mode():
        for place in range(len(program.calls)):
            value = run.step(place)
            run.free(place)
    return value


@pytest.mark.parametrize(
    ("name", "size"),
    [("shufflenet", 64), ("vit_tiny_patch16_224", 224), ("swin_tiny_patch4_window7_224", 224), ("levit_128s", 224)],
)
def test_it_computes_the_networks_logits_for_every_size_of_batch(name, size):
    torch.manual_seed(0)
    if name == "shufflenet":
        network = __import__("torchvision").models.shufflenet_v2_x0_5(num_classes=7)
    else:
        network = timm.create_model(name, num_classes=7)
    network.eval()
    program = program_of(network, torch.randn(2, 3, size, size))
    kept = JSON.validate_json(JSON.dump_json(program))
    assert kept == program
    assert kept.batch is None
    for batch in (1, 3):
        x = torch.randn(batch, 3, size, size)
        assert kept.fits(network, x)
        with torch.inference_mode():
            torch.testing.assert_close(outputs(kept, network, x), network(x))


class ByBatch(nn.Module):
    """One sample more than two is computed in another way."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.one(x)
        return self.two(x.relu() if len(x) < 3 else x.tanh())


class WithNumbers(nn.Module):
    """Makes tensors of its own: numbers, an infinite one, an order, of the batch's size too."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = (
            self.one(x) * torch.tensor([1.0, 2.0, 3.0, 4.0])
            + torch.arange(len(x), dtype=torch.float32, device=x.device)[:, None]
        )
        x = x.masked_fill(x < 0, float("-inf")).clamp(min=-5.0)
        return self.two(F.relu(x.reshape(len(x) * 2, 2)).reshape(len(x), 4).to(torch.float32))


def test_a_program_that_depends_on_the_size_of_the_batch_is_for_that_size_alone():
    network = ByBatch()
    program = program_of(network, torch.randn(2, 3))
    assert program.batch == 2
    assert program.fits(network, torch.randn(2, 3))
    assert not program.fits(network, torch.randn(3, 3))


def test_numbers_that_json_does_not_have_and_sizes_of_batches_are_kept():
    network = WithNumbers().eval()
    program = JSON.validate_json(JSON.dump_json(program_of(network, torch.randn(2, 3))))
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3)
        with torch.inference_mode():
            assert torch.equal(outputs(program, network, x), network(x))


def test_a_network_of_another_architecture_is_told_from_one_of_other_values():
    one, other = (
        mlp(0),
        mlp(1),
    )
    assert architecture_of(one) == architecture_of(other.eval())
    activation = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Sequential(nn.Linear(3, 4), nn.GELU())
    slope = nn.Sequential(nn.LeakyReLU(0.1)), nn.Sequential(nn.LeakyReLU(0.2))
    width = nn.Linear(3, 4), nn.Linear(3, 5)
    for pair in (activation, slope, width, (nn.Linear(3, 4), nn.Linear(3, 4).double())):
        assert architecture_of(pair[0]) != architecture_of(pair[1])


def test_networks_of_unlike_precision_are_matched():
    one = mlp(0)
    other = mlp(0).double()
    x = torch.randn(50, 8)
    spec = derive_spec(one, x[:2])
    planted = random_permutation(spec, 1)
    other.load_state_dict(planted.apply(one.state_dict()))
    found = match_activations(one, other, spec, [x]).permutation
    for group, perm in planted.perms.items():
        assert torch.equal(found.perms[group], perm)
