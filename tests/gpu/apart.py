"""Checks in a process of their own, which they may leave unusable: `python -m tests.gpu.apart NAME [cpu|cuda] ...`."""

import sys
import threading
from typing import Any

import torch

from raylth.core.memory import is_out_of_memory, release_memory
from raylth.core.precision import set_precision
from raylth.core.training import engine_proof as proof
from raylth.core.training import pack_tuning
from raylth.core.training.engines import captured, program
from raylth.core.training.pack_tuning import fastest_pack
from raylth.core.training.recipe import Recipe
from raylth.core.training.step import LeanStep
from tests.gpu.trainings import alone, assert_same_bits, networks_of, random_split, registered, run

RECIPE = Recipe(2, lr=0.05, batch_size=32, label_smoothing=0.1, drop_last=False)


def is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def proved(device: torch.device, engine: Any, precision: Any) -> None:
    """An engine is proved for ResNet-20, without a note; prints how near it came."""
    width, shape, batch = (1.0, (3, 32, 32), 128) if device.type == "cuda" else (0.25, (3, 8, 8), 16)
    networks = [registered("resnet20", width, shape)(seed).to(device) for seed in range(2)]
    real = proof.prove

    def prove(*arguments: Any) -> proof.Proof:
        found = real(*arguments)
        print(f"{found}, of the bound {found.error / found.bound:.3f}", flush=True)
        return found

    recipe = Recipe(1, lr=0.1, batch_size=batch, precision=precision)
    try:
        proof.prove = prove
        found = proof.usable(engine, networks, recipe, shape)
    finally:
        proof.prove = real
    assert found == (engine, []), found


def pinned_beside_a_capture(device: torch.device) -> None:
    """Host memory that a thread pins while a step is captured, as the draws of the next epoch are, disturbs neither."""
    real, errors, times = captured.CapturedSteps._run, list[BaseException](), list[int]()

    def pin(size: int) -> None:
        try:
            torch.empty(size, dtype=torch.uint8).pin_memory()  # of a new size: the cache has none
        except BaseException as error:
            errors.append(error)

    def slow(self: captured.CapturedSteps, held: captured.Buffers) -> None:
        real(self, held)
        if is_capturing(device):
            times.append(len(times))
            thread = threading.Thread(target=pin, args=(2 ** (25 + len(times)),))
            thread.start()
            thread.join()

    captured.CapturedSteps._run = slow  # type: ignore[method-assign]
    _, networks, losses = run("resnet20", "graph", 2, device, RECIPE)
    assert not errors, errors
    assert len(times) == (2 if device.type == "cuda" else 0), "a capture for each size of batch"
    expected, wanted = alone("resnet20", 2, device, RECIPE)
    assert losses == wanted
    assert_same_bits(expected, networks)


def full_in_a_capture(device: torch.device) -> None:
    """Memory that runs out within a capture, while branches are open, is known as that, and the process continues."""
    made = []

    class Full(LeanStep):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

        def __call__(self, *arguments: Any) -> torch.Tensor:
            found = super().__call__(*arguments)
            if self is made[1] and is_capturing(device):
                torch.empty(2**48, device=device)
            elif self is made[1] and device.type == "cpu":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            return found

    program.LeanStep = Full  # type: ignore[misc]
    kept = None
    try:
        run("resnet20", "graph", 3, device, RECIPE)
    except Exception as error:
        kept = error
    program.LeanStep = LeanStep  # type: ignore[misc]
    assert kept is not None, "nothing was raised"
    assert is_out_of_memory(kept), f"not known as out of memory: {kept!r}, in the course of {kept.__context__!r}"
    release_memory(kept)
    made.clear()
    if device.type == "cuda":
        assert torch.cuda.current_stream() == torch.cuda.default_stream(), "the capture's stream is still the current one"
        torch.cuda.empty_cache()
    _, networks, losses = run("resnet20", "graph", 3, device, RECIPE)
    expected, wanted = alone("resnet20", 3, device, RECIPE)
    assert losses == wanted
    assert_same_bits(expected, networks)


def fastest_in_little_memory(device: torch.device, engine: Any = "eager") -> None:
    """The search for the fastest pack meets the end of a GPU's memory, goes back to what fits, and raises nothing."""
    full = list[BaseException]()

    def note(error: BaseException) -> bool:
        found = is_out_of_memory(error)
        full.extend([error] if found else [])
        return found

    pack_tuning.is_out_of_memory = note  # type: ignore[assignment]
    pack_tuning.STEPS_ON_GPU, pack_tuning.STEPS, pack_tuning.SHORTEST = 2, 2, 0.0
    sizes, shape, width, batch = (1, 2, 4, 8), (3, 32, 32), 1.0, 512  # 1.6 MB a sample: 3.3 GB for four networks
    if device.type == "cuda":
        networks_of("resnet20", 1, device)  # the context and what torch itself needs
        free = torch.cuda.memory_reserved() + 5 * 2**29
        torch.cuda.set_per_process_memory_fraction(free / torch.cuda.get_device_properties(device).total_memory)
    else:
        shape, width, batch, proof.STEPS = (3, 8, 8), 0.25, 8, 3
        real = pack_tuning.evaluate_together

        def evaluate(program: Any, split: Any) -> Any:
            if program.size > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            return real(program, split)

        pack_tuning.evaluate_together = evaluate  # type: ignore[assignment]
    build = registered("resnet20", width, shape)
    split = random_split(shape, device, 2 * batch)
    engines = ("eager",) if engine == "eager" else ("eager", engine)
    found = fastest_pack(lambda: build(0).to(device), split, Recipe(1, lr=0.1, batch_size=batch), "flip_crop",
                         engines=engines, sizes=sizes)  # fmt: skip
    print(found)
    assert full or found.notes, "memory did not run out"
    assert found.size in (1, 2)
    assert found.rates["eager"]
    assert all(size <= 2 for rates in found.rates.values() for size in rates)
    if device.type == "cuda":
        full.clear()
        release_memory()
        with_workspaces = torch.cuda.memory_allocated()
        torch._C._cuda_clearCublasWorkspaces()  # one for each stream that was ever used
        held = torch.cuda.memory_allocated()
        print(f"still held: {held} bytes, and {with_workspaces - held} as workspaces of cuBLAS")
        assert held < 2**28
        torch.cuda.set_per_process_memory_fraction(1.0)


CHECKS = {
    each.__name__: each for each in (proved, pinned_beside_a_capture, full_in_a_capture, fastest_in_little_memory)
}  # fmt: skip


def main(name: str, device: str = "cpu", *more: str) -> None:
    if device == "cpu":
        torch.set_num_threads(1)
    set_precision("float32")
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    where = torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device(device)
    CHECKS[name](where, *more)  # type: ignore[operator]


if __name__ == "__main__":
    main(*sys.argv[1:])
