"""Several processes train one network: the same training as one process's, to rounding."""

import math
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from raylth.core.data.dataset import part_of
from raylth.core.masks import full_mask, shuffle_mask
from raylth.core.models import init_model
from raylth.core.pruning import prune_global_magnitude
from raylth.core.training.data_parallel import ALONE, SyncedBatchNorm, Team
from raylth.core.training.loop import Diverged, Recipe, evaluate_together, train
from raylth.core.training.packing import Program
from tests.core.training.test_loop import random_split

CLASSES = 10
SHAPES = {"resnet20": (3, 8, 8), "mlp": (40,), "vgg11": (3, 32, 32)}


def network(name: str) -> nn.Module:
    return init_model(3, name, width=0.25, num_classes=CLASSES, in_shape=SHAPES[name])


def in_team(size: int, work, folder) -> list:
    """Run `work(team)` in processes of a gloo group; returns what each returned.

    They are forked from a process that has imported all and computed nothing: torch's exporter gives autograd threads, with
    which no process that has run a backward pass can be forked.
    """
    mp.get_context("forkserver").set_forkserver_preload([__name__])
    mp.start_processes(_member, (size, work, str(folder)), nprocs=size, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _member(rank: int, size: int, work, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    torch.save(work(Team(rank, size)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def kinds_of_norms(model: nn.Module) -> set[str]:
    return {type(module).__name__ for module in model.modules() if isinstance(module, _BatchNorm)}


def fitted(team: Team, name: str = "resnet20", count: int = 100, stop_at=None, state=None, lr=0.002, **settings) -> dict:
    """Train under a mask, with the team's scores on the same images after each epoch."""
    split, model, scores, kept = random_split(SHAPES[name], count), network(name), [], []
    program = Program([model])
    mask = shuffle_mask(prune_global_magnitude(model.state_dict(), full_mask(model), fraction=0.5), 3)
    recipe = Recipe(epochs=3, lr=lr, batch_size=32, label_smoothing=0.1, **{"drop_last": False, **settings})

    def on_step(completed, step, snapshot):
        if (completed, step) == stop_at:
            kept.append(snapshot())
            raise KeyboardInterrupt

    try:
        losses = train(
            model, split, recipe, seed=5, augment="none" if name == "mlp" else "flip_crop", mask=mask, team=team, state=state,
            on_step=on_step, on_epoch=lambda *_: scores.extend(evaluate_together(program, split, team=team)),
        )  # fmt: skip
    except KeyboardInterrupt:
        return {"state": kept[0]}
    return {"losses": losses, "scores": scores, "weights": model.state_dict(), "norms": kinds_of_norms(model)}


def assert_close(found: dict, wanted: dict, name: str = "resnet20") -> None:
    """Two trainings end at the same place: apart by less than a tenth of what one has moved, tensor by tensor."""
    start = network(name).state_dict()
    assert found["losses"] == pytest.approx(wanted["losses"], rel=1e-3)
    for key, tensor in wanted["weights"].items():
        apart = float((found["weights"][key].double() - tensor.double()).norm())
        moved = float((tensor.double() - start[key].double()).norm())
        assert apart <= 0.1 * moved + 1e-6, f"{name}: {key}: apart by {apart}, moved by {moved}"


@pytest.mark.parametrize("count", [0, 1, 5, 16, 17, 143])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_parts_are_the_whole_in_order_and_fit_the_parts_of_a_full_batch(count, size):
    parts = [range(count)[part_of(count, (number, size))] for number in range(size)]
    assert [index for part in parts for index in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(len(part) <= len(range(count + 9)[part_of(count + 9, (i, size))]) for i, part in enumerate(parts))


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [("resnet20", 2, 100), ("resnet20", 3, 98), ("mlp", 2, 100), ("vgg11", 2, 100)],  # 98 = 3 * 32 + 2: one has no sample
)
def test_a_team_trains_as_one_process_does(tmp_path, name, size, count):
    alone = fitted(ALONE, name, count)
    for found in in_team(size, partial(fitted, name=name, count=count), tmp_path):
        assert_close(found, alone, name)
        assert [score.accuracy for score in found["scores"]] == pytest.approx([s.accuracy for s in alone["scores"]], abs=2.1)
        assert [score.loss for score in found["scores"]] == pytest.approx([s.loss for s in alone["scores"]], rel=1e-3)


def test_the_processes_end_with_the_same_bits_and_batch_norms_of_their_own_kind(tmp_path):
    one, other = in_team(2, fitted, tmp_path)
    assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])
    assert one["losses"] == other["losses"]
    assert one["norms"] == {"BatchNorm2d"}


def test_unsynced_batch_norms_see_their_part_and_keep_the_mean_of_statistics(tmp_path):
    """Another training than the synced one; and the same in all processes, statistics too."""
    one, other = in_team(2, partial(fitted, unsynced_workers=2), tmp_path)
    assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])
    alone = fitted(ALONE)
    with pytest.raises(AssertionError, match="apart by"):
        assert_close({**one, "losses": alone["losses"]}, alone)
    with pytest.raises(ValueError, match="2 processes were to train this network, and there are 1"):
        fitted(ALONE, unsynced_workers=2)


@pytest.mark.parametrize("settings", [{}, {"unsynced_workers": 2}])
def test_a_team_resumes_from_an_epoch_with_the_same_bits(tmp_path, settings):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir(), (tmp_path / "c").mkdir()
    whole = in_team(2, partial(fitted, **settings), tmp_path / "a")[0]
    state = in_team(2, partial(fitted, stop_at=(2, 0), **settings), tmp_path / "b")[1]["state"]
    assert (state.epochs, state.step) == (2, 0)
    again = in_team(2, partial(fitted, state=state, **settings), tmp_path / "c")[0]
    assert again["losses"] == whole["losses"]
    assert all(torch.equal(again["weights"][name], whole["weights"][name]) for name in whole["weights"])


def test_one_process_resumes_in_mid_epoch_what_two_began(tmp_path):
    state = in_team(2, partial(fitted, stop_at=(1, 3)), tmp_path)[1]["state"]
    alone = fitted(ALONE)
    again = fitted(ALONE, state=state)
    assert_close(again, alone)


def diverging(team: Team) -> tuple[bool, str]:
    try:
        fitted(team, lr=1e6)
    except Diverged as error:
        return True, str(error)
    return False, ""


def test_a_team_diverges_together(tmp_path):
    found = in_team(2, diverging, tmp_path)
    assert found[0] == found[1]
    assert found[0][0]


def told(team: Team) -> list[bool]:
    found = team.any(team.rank == 1, False)
    team.agree("the same", "nothing")
    with pytest.raises(RuntimeError, match=r"differ in their number: \[0, 1\]"):
        team.agree(team.rank, "their number")
    return found


def test_processes_exchange_messages(tmp_path):
    assert in_team(2, told, tmp_path) == [[True, False]] * 2
    assert ALONE.any(True, False) == [True, False]
    assert math.isclose(float(ALONE.sum(torch.tensor(2.0))), 2.0)


def test_synced_batch_norm_has_torchs_gradients(tmp_path):
    """Of one process's share, against torch's batch norm of the whole batch."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(12, 5, 3, 3, generator=generator) * 3 + 100
    weights = torch.randn(12, 5, 3, 3, generator=generator)
    norm = nn.BatchNorm2d(5)
    nn.init.normal_(norm.weight, generator=generator)
    whole = x.clone().requires_grad_()
    (norm(whole) * weights).sum().backward()
    found = in_team(2, partial(_share_of_norm, x, weights, norm.weight.detach()), tmp_path)
    torch.testing.assert_close(torch.cat([share["x"] for share in found]), whole.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0]["weight"] + found[1]["weight"], norm.weight.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found[0]["bias"] + found[1]["bias"], norm.bias.grad, rtol=1e-4, atol=1e-3)
    for share in found:
        torch.testing.assert_close(share["mean"], norm.running_mean)
        torch.testing.assert_close(share["var"], norm.running_var)


def _share_of_norm(x: torch.Tensor, weights: torch.Tensor, weight: torch.Tensor, team: Team) -> dict:
    norm = SyncedBatchNorm(5)
    with torch.no_grad():
        norm.weight.copy_(weight)
    own = slice(0, 7) if team.rank == 0 else slice(7, 12)  # unequal
    part = x[own].clone().requires_grad_()
    (norm(part) * weights[own]).sum().backward()
    gradients = {"x": part.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    return gradients | {"mean": norm.running_mean, "var": norm.running_var}


class Peculiar(nn.BatchNorm2d):
    """A kind of its own."""


class Odd(nn.Module):
    """Dropout, a layer that is not used, and a batch norm under two names."""

    def __init__(self, norm: type = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.unused, self.norm = nn.Conv2d(3, 4, 3), nn.Linear(2, 2), norm(4)
        self.again, self.drop, self.out = self.norm, nn.Dropout(0.5), nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.drop(torch.ones(64))
        return self.out(self.again(self.norm(self.conv(x))).mean((2, 3)))


def odd(team: Team, norm: type = nn.BatchNorm2d) -> dict:
    torch.manual_seed(3)
    model = Odd(norm)
    torch.manual_seed(100 * team.rank)  # what a process drew before is nothing to the training
    try:
        losses = train(model, random_split((3, 8, 8), 64), Recipe(epochs=2, lr=0.01, batch_size=32), seed=5, team=team)
    except ValueError as error:
        return {"error": str(error)}
    return {"losses": losses, "seen": model.seen, "unused": model.unused.weight.grad, "weights": model.state_dict()}


def test_a_team_takes_unused_parameters_and_shared_modules_and_draws_for_each_process(tmp_path):
    alone, again = odd(ALONE), odd(ALONE)
    assert torch.equal(alone["seen"], again["seen"]), "drawn from the training's seed"
    one, other = in_team(2, odd, tmp_path)
    assert torch.equal(one["seen"], alone["seen"])
    assert not torch.equal(one["seen"], other["seen"])
    assert one["unused"] is None
    assert one["losses"] == pytest.approx(alone["losses"], rel=1e-4)


def test_a_batch_norm_of_a_kind_of_its_own_is_refused(tmp_path):
    for found in in_team(2, partial(odd, norm=Peculiar), tmp_path):
        assert found == {"error": "norm: a Peculiar cannot be synced over processes: set unsynced_workers"}
