"""State dicts load wherever what they were made from did, also into modules that ask for their version."""

import io

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torchvision import models

from raylth.core.interpolate import Plane, interpolate, line
from raylth.core.masks import apply_mask, full_mask
from raylth.core.permutation import derive_spec, random_permutation
from raylth.core.pruning import prune_global_magnitude
from raylth.core.pruning.torch_prune import from_torch_prune, to_torch_prune
from raylth.core.state import like, load_tensors
from raylth.core.training.packing import Program


class Asks(nn.Sequential):
    """Loads only what says that it is of version 3, as torchvision's MNASNet does."""

    _version = 3

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *arguments):
        if local_metadata.get("version") != 3:
            raise ValueError(f"version {local_metadata.get('version')}")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *arguments)


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(Asks(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), nn.Flatten(), nn.Linear(16, 5))


def pruned(kept):
    """A network whose weights went through `torch.nn.utils.prune`."""
    made = network(9)
    for name, alive in kept.items():
        prune.custom_from_mask(made.get_submodule(name.removesuffix(".weight")), "weight", alive)
    return made


def test_whatever_is_made_of_a_state_dict_loads_where_it_did():
    one, two, three = (network(seed) for seed in range(3))
    a, b, c = (each.state_dict() for each in (one, two, three))
    with pytest.raises(ValueError, match="version None"):
        one.load_state_dict(dict(a))
    permutation = random_permutation(derive_spec(one, torch.zeros(2, 3, 4, 4)), 0)
    mask = prune_global_magnitude(a, full_mask(one), fraction=0.5)
    moved = permutation.apply(a)
    made = {
        "apply": moved,
        "apply twice": permutation.inverse().apply(moved),
        "interpolate": interpolate(moved, b, 0.25),
        "interpolate, only A knows": interpolate(moved, dict(b), 0.25),
        "line": line(a, b, [0.5], lambda _, state: state)[0],
        "plane": Plane(a, b, c, coordinates_of=[name for name, _ in one.named_parameters()]).at(0.1, 0.1),
        "apply_mask": apply_mask(a, mask),
        "from_torch_prune": from_torch_prune(pruned(mask).state_dict())[0],
    }
    for how, state in made.items():
        target = network(5)
        target.load_state_dict(state)
        assert all(torch.equal(tensor, state[name]) for name, tensor in target.state_dict().items()), how
    buffer = io.BytesIO()
    torch.save(to_torch_prune(a, mask), buffer)
    buffer.seek(0)
    target = pruned(mask)
    target.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(target[0][0].weight_orig, a["0.0.weight"])


def test_plain_tensors_load_by_the_networks_own_versions():
    source, target = network(0), network(1)
    plain = dict(source.state_dict())
    assert type(like(plain, plain)) is dict
    load_tensors(target, plain)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in target.state_dict().items())
    wrong = {name: tensor for name, tensor in plain.items() if not name.startswith("2.")}
    with pytest.raises(RuntimeError, match=r"Missing key.*2.weight"):
        load_tensors(target, wrong)


def test_a_state_that_says_its_version_keeps_it():
    state = like({"weight": torch.zeros(2)}, {})
    assert not hasattr(state, "_metadata")
    old = network(0).state_dict()
    old._metadata["0"]["version"] = 2
    with pytest.raises(ValueError, match="version 2"):
        load_tensors(network(1), old)


def test_networks_of_a_pack_get_their_values_back():
    networks = [network(seed) for seed in (1, 2)]
    program = Program(networks)
    with torch.no_grad():
        for _, parameter in program.network.named_parameters():
            parameter.add_(1.0)
    expected = [{name: tensor.clone() for name, tensor in program.member(number).items()} for number in (0, 1)]
    program.write_back()
    for each, state in zip(networks, expected, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in each.state_dict().items())


def test_a_network_of_torchvision_that_asks_for_its_version():
    torch.manual_seed(0)
    model, other = (models.mnasnet0_5(num_classes=4).eval() for _ in range(2))
    x = torch.randn(2, 3, 32, 32)
    other.load_state_dict(random_permutation(derive_spec(model, x), 1).apply(model.state_dict()))
    with torch.no_grad():
        torch.testing.assert_close(other(x), model(x), rtol=1e-3, atol=1e-4)
