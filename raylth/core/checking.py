"""Tries a network before anything is trained: whether it can be trained, evaluated, moved and corrected as a sweep asks."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raylth.core.exporting import export
from raylth.core.graph import place_of, text_of, trace
from raylth.core.layerwise import reset_and_predict
from raylth.core.masks import prunable_names
from raylth.core.memory import is_out_of_memory
from raylth.core.modes import in_mode
from raylth.core.permutation import Permutation, PermutationSpec, identity_permutation, random_permutation
from raylth.core.permutation.derive import UnknownOperation, derive_spec
from raylth.core.repair import repair, site_statistics
from raylth.core.state import load_tensors
from raylth.core.tensors import check_tensors

__all__ = ["BadNetwork", "Uses", "check_network", "why_not_one_sample"]

SAMPLES = 2
KEPT = {  # types of tensors
    torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
}  # fmt: skip
MANY = 100_000  # numbers in the samples, beyond which a permuted copy computes one of them
OTHER = (
    "it computes something else than its traced graph: by hooks on the network, in a context such as autocast, by a "
    "state of its own, or by numbers that torch did not draw"
)
EXACT, ROUNDED = 1e-5, 1e-3  # of the largest logit, by which a moved network may differ in float64 and in float32


class BadNetwork(ValueError):
    """A network that a sweep cannot work with; one line that says what it does, and where."""


@dataclass(frozen=True)
class Uses:
    """What a sweep does with a network, beside training and evaluating it."""

    num_classes: int
    in_shapes: tuple[tuple[int, ...], ...]  # of one sample; further ones where crops grow
    is_permuted: bool = False
    corrections: tuple[str, ...] = ()  # "reset", "repair": of networks on lines and planes
    is_half: bool = False  # trained in bf16 on a CPU
    prune_shortcuts: bool = False


def check_network(build: Callable[[int], nn.Module], uses: Uses) -> PermutationSpec | None:
    """Raise BadNetwork unless the network that `build(seed)` makes can be used so; returns its symmetry if that is used.

    Two samples of each shape go forward and backward in training mode and forward in evaluation mode; its logits must be one
    tensor (2, num_classes) and finite. A copy whose units are permuted at random must compute the same function, also of what
    a new network has zeros and ones for. Its initialisation must follow from the seed. Nothing of it outlives the call but
    torch's random state as it was. Raises MemoryError where memory is too small to try it.
    """
    with torch.random.fork_rng(devices=[]), _trying(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network, again, other = (_laid_out(build(seed), uses) for seed in (0, 0, 1))
        _check_tensors(network, uses)
        _check_seeds(network, again, other)
        for shape in uses.in_shapes:
            x, alone = _check_modes(network, shape, uses)
            if shape == uses.in_shapes[0]:
                samples = x
                _check_trace(network, x, alone, uses)
        spec = _check_symmetry(again, other, samples) if uses.is_permuted else None
        for correction in uses.corrections:
            _check_correction(correction, _laid_out(build(1), uses), samples, uses)
    return spec


def why_not_one_sample(build: Callable[[int], nn.Module], in_shapes: Sequence[tuple[int, ...]]) -> str | None:
    """Say why a network cannot be trained on a batch of one sample; None where it can."""
    with torch.random.fork_rng(devices=[]), _trying(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = build(0)
        for shape in in_shapes:
            try:
                _forward(network, _samples(shape)[:1], training=True)
            except BadNetwork as error:
                return str(error)
    return None


@contextmanager
def _trying() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError("not enough memory to check the network") from error
        raise


def _laid_out(network: nn.Module, uses: Uses) -> nn.Module:
    """Lay a network's weights out as they are trained."""
    return network.to(memory_format=torch.channels_last) if len(uses.in_shapes[0]) == 3 else network


def _check_tensors(network: nn.Module, uses: Uses) -> None:
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise BadNetwork(f"its state dict holds {name!r}, a {type(value).__name__}: a store keeps tensors only")
        if value.dtype not in KEPT:
            raise BadNetwork(f"{name!r} is {str(value.dtype).removeprefix('torch.')}, which a store does not keep")
    for name, parameter in network.named_parameters():
        if parameter.dtype != torch.float32:
            raise BadNetwork(
                f"{name!r} is {str(parameter.dtype).removeprefix('torch.')}: weights are float32 (see precision)"
            )
    try:
        check_tensors(network)
        names = prunable_names(network, prune_shortcuts=uses.prune_shortcuts)
    except ValueError as error:
        raise BadNetwork(str(error)) from error
    if not names:
        raise BadNetwork("it has no weight that pruning may touch: no convolution or linear layer (but on shortcuts)")


def _check_seeds(network: nn.Module, again: nn.Module, other: nn.Module) -> None:
    """A and B are two networks, and each is the same wherever it is built."""
    states = [dict(each.state_dict()) for each in (network, again, other)]
    storages = [{tensor.untyped_storage()._cdata for tensor in state.values() if tensor.numel()} for state in states]
    if network is again or network is other or storages[0] & (storages[1] | storages[2]):
        raise BadNetwork("it is the same object, or has the same tensors, each time it is built: build a new one")
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    if shapes[0] != shapes[1] or shapes[0] != shapes[2]:
        raise BadNetwork("it has other tensors each time it is built")
    drawn = [name for name, parameter in network.named_parameters() if parameter.ndim > 1] or list(states[0])
    if not all(_is_same(states[0][name], states[1][name]) for name in drawn):
        raise BadNetwork("its initialisation does not follow from torch's random state: one seed gives two networks")
    if all(_is_same(states[0][name], states[2][name]) for name in drawn):
        raise BadNetwork(
            "its initialisation is the same for every seed (torch.manual_seed inside, or fixed weights): A would be B"
        )


def _forward(network: nn.Module, x: Tensor, *, training: bool, seed: int = 1) -> Tensor:
    """Return the outputs of a forward pass, seeded; BadNetwork for an error in it, without words of several lines."""
    torch.manual_seed(seed)
    mode = "training" if training else "evaluation"
    try:
        with in_mode(network, training=training):
            out: Tensor = network(x)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise BadNetwork(f"its forward pass in {mode} mode fails on inputs {tuple(x.shape)}: {_words(error)}") from error
    return out


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place_of(error)}"


def _samples(shape: tuple[int, ...], *, binary: bool = False) -> Tensor:
    """Return samples, laid out as training lays images out."""
    torch.manual_seed(0)
    x = torch.randint(0, 2, (SAMPLES, *shape)).float() if binary else torch.randn(SAMPLES, *shape)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _check_modes(network: nn.Module, shape: tuple[int, ...], uses: Uses) -> tuple[Tensor, Tensor]:
    """Train a step without an update, and evaluate; returns the samples, and the outputs for the first of them alone.

    The samples are normal ones; where these are no input for the network, as they are no indices, of 0 and 1.
    """
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16) if uses.is_half else nullcontext():
        x = _samples(shape)
        try:
            logits = _forward(network, x.clone(), training=True)
        except BadNetwork:
            binary = _samples(shape, binary=True)
            try:
                logits, x = _forward(network, binary.clone(), training=True), binary
            except BadNetwork:
                logits = _forward(network, x.clone(), training=True)  # fails again, in its own words
    _check_logits(logits, uses, "training")
    labels = torch.arange(SAMPLES) % uses.num_classes
    try:
        F.cross_entropy(logits.float(), labels).backward()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise BadNetwork(f"its backward pass fails: {_words(error)}") from error
    if all(parameter.grad is None for parameter in network.parameters()):
        raise BadNetwork("no gradient reaches its weights")
    for name, parameter in network.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise BadNetwork(f"the gradient of {name!r} at its initialisation is not finite")
    network.zero_grad()
    load_tensors(network, before)
    with torch.no_grad():
        given = x.clone()
        together = _forward(network, given, training=False)
        _check_logits(together, uses, "evaluation")
        if not _is_same(given, x):
            raise BadNetwork("it changes its input in place, which is the data set's memory: work on a copy")
        alone = _forward(network, x[:1].clone(), training=False, seed=2)
        _check_logits(alone, uses, "evaluation", 1)
    if _difference(alone, together[:1]) > ROUNDED:
        raise BadNetwork(
            "in evaluation mode its output for a sample differs from call to call, or depends on the others of the batch "
            "(F.dropout without training=self.training, or a norm without running statistics)"
        )
    changed = [name for name, tensor in network.state_dict().items() if not _is_same(tensor, before[name])]
    if changed:
        raise BadNetwork(f"its forward pass in evaluation mode changes {changed[0]!r}")
    return x, alone


def _check_logits(out: object, uses: Uses, mode: str, samples: int = SAMPLES) -> None:
    wanted = (samples, uses.num_classes)
    if not isinstance(out, Tensor):
        names = list(out) if isinstance(out, Mapping) else getattr(out, "_fields", [])
        held = f" of {', '.join(map(str, names))}" if names else f" of {len(out)}" if isinstance(out, tuple | list) else ""
        raise BadNetwork(
            f"its output in {mode} mode is a {type(out).__name__}{held}: it must be its logits alone, one tensor {wanted}"
        )
    if tuple(out.shape) != wanted:
        raise BadNetwork(f"its output in {mode} mode has the shape {tuple(out.shape)}, and should have {wanted}")
    if not out.is_floating_point():
        raise BadNetwork(f"its output in {mode} mode is {out.dtype}: logits are floating-point numbers")
    if not bool(out.isfinite().all()):
        raise BadNetwork(
            f"its logits in {mode} mode are not finite right after initialisation, on normally distributed inputs"
        )


def _check_trace(network: nn.Module, x: Tensor, alone: Tensor, uses: Uses) -> None:
    """What works on the traced network must work on the network: packs, matching, corrections."""
    try:
        training, evaluation = trace(network, training=True), trace(network)
    except UnknownOperation as error:
        if "reset" in uses.corrections and any(isinstance(module, _BatchNorm) for module in network.modules()):
            raise BadNetwork(str(error)) from error
        if uses.is_permuted:
            _check_program(network, x, alone)
        return
    with torch.no_grad():
        differs = _difference(_forward(evaluation, x[:1].clone(), training=False, seed=2), alone) > ROUNDED
        if not differs and text_of(training) != text_of(evaluation):
            expected = _forward(network, x.clone(), training=True)
            differs = _difference(_forward(training, x.clone(), training=True), expected) > ROUNDED
    if differs:
        raise BadNetwork(OTHER)


def _check_program(network: nn.Module, x: Tensor, alone: Tensor) -> None:
    """Matching runs the exported program: what it computes must be what the network computes."""
    try:
        program = export(network, x[:1])
    except UnknownOperation as error:
        raise BadNetwork(str(error)) from error
    with torch.no_grad():
        if _difference(program.module()(x[:1].clone()), alone) > ROUNDED:
            raise BadNetwork(OTHER)


def _check_symmetry(network: nn.Module, moved: nn.Module, x: Tensor) -> PermutationSpec:
    """Derive the symmetry and return it, and hold a permuted copy against the network, in float64 where it can be."""
    try:
        spec = derive_spec(network, x)
    except ValueError as error:
        raise BadNetwork(str(error)) from error
    if not spec.groups:
        raise BadNetwork(
            "none of its units can be permuted: there is no hidden layer, or one operation fixes all of them; a network that "
            "is meant to have no symmetry has arms without a permutation only"
        )
    permutation, tolerance = random_permutation(spec, 0), EXACT
    x = x if x.numel() <= MANY else x[:1]
    plain = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    _vary(network)
    varied = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        for state in (varied, plain):
            load_tensors(network, state)
            try:
                by = _moved_by(network.double(), moved.double(), permutation, x.double())
            except BadNetwork:  # it makes float32 tensors itself
                tolerance = ROUNDED
                by = _moved_by(network.float(), moved.float(), permutation, x)
            if by != float("inf"):
                break
        if by <= tolerance:
            return spec
        x, identity = x.to(next(network.parameters()).dtype), identity_permutation(spec)
        alone = {
            name: _moved_by(network, moved, Permutation(spec, {**identity.perms, name: perm}), x)
            for name, perm in permutation.perms.items()
        }
    worst = max(alone, key=lambda name: alone[name])
    raise BadNetwork(
        f"a copy with permuted units computes another function, by {by:.2g} of its largest logit; the units of {worst!r} "
        f"alone by {alone[worst]:.2g}: its symmetry cannot be derived"
    )


def _vary(network: nn.Module) -> None:
    """Give what is constant in a new network, as biases and norms are, values of its own: a wrong axis shows then."""
    torch.manual_seed(2)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
                tensor.uniform_(0.5, 1.5)


def _moved_by(network: nn.Module, moved: nn.Module, permutation: Permutation, x: Tensor) -> float:
    moved.load_state_dict(permutation.apply(network.state_dict()))
    expected, found = (_forward(each, x.clone(), training=False) for each in (network, moved))
    return _difference(found, expected)


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest of the expected; infinite where either is not finite."""
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    return error if error < float("inf") else float("inf")


def _is_same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _check_correction(correction: str, network: nn.Module, x: Tensor, uses: Uses) -> None:
    """Correct a network between two as lines and planes do."""
    try:
        if correction == "repair":
            statistics = site_statistics(network, [x])
            repair(network, statistics, statistics, 0.5, [x])
        elif any(isinstance(module, _BatchNorm) for module in network.modules()):
            out = reset_and_predict(network, [x])
            _check_logits(out, uses, "evaluation")
    except BadNetwork:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise BadNetwork(f"correction {correction!r} fails: {_words(error)}") from error
