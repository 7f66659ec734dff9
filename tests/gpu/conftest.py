"""The tests that a GPU is to be met with: `python -m pytest -m gpu tests/gpu`, about a minute on a card.

Without a GPU they are skipped; RAYLTH_GPU_TESTS=cpu runs them on the CPU in a reduced form, to try the tests themselves.
Where pydantic is missing, give pytest `--confcutdir tests/gpu` too: the fixtures of the other tests need it.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from raylth.core.precision import precision
from raylth.core.training import engine_proof as proof

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
APART = "test_usable.py"  # its processes start when the session starts, and run beside the other tests
JOBS = {
    **{
        f"kernels {name}": ["tests.core.training.engines.checks", name, "cuda", "1"]
        for name in ("conv", "moments", "norm", "alone")
    },
    **{
        f"proof {engine} {kind}": ["tests.gpu.apart", "proved", "cuda", engine, kind]
        for engine in ("compiled", "stacked", "graph")
        for kind in ("float32", "bf16")
    },
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies here, and do not take a library's warning for an error: other versions warn of other things."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.filterwarnings("default", "error:The AccumulateGrad node's stream"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU; the CPU where RAYLTH_GPU_TESTS=cpu asks for it."""
    if os.environ.get("RAYLTH_GPU_TESTS") == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def card(device: torch.device) -> torch.device:
    """The GPU, for what means nothing on a CPU."""
    if device.type != "cuda":
        pytest.skip("means nothing on a CPU")
    return device


@pytest.fixture(autouse=True)
def _as_a_worker(device: torch.device, monkeypatch: pytest.MonkeyPatch, jobs: object) -> Iterator[None]:
    """What a sweep's worker sets: float32 products in float32, reproducible kernels. Nothing is proved yet."""
    if device.type == "cpu":
        torch.set_num_threads(1)
    monkeypatch.setattr(proof, "PROVED", {})
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with precision("float32"):
        yield


class Jobs:
    """Processes that were started together; `output` waits for one, and fails the test where it failed."""

    def __init__(self, commands: dict[str, list[str]]) -> None:
        self.files = {name: tempfile.TemporaryFile("w+") for name in commands}  # noqa: SIM115  # closed in `end`
        self.started = {
            name: subprocess.Popen(
                [sys.executable, "-m", *command], cwd=ROOT, stdout=self.files[name], stderr=subprocess.STDOUT
            )
            for name, command in commands.items()
        }

    def output(self, name: str, timeout: float = 280) -> str:
        """Return what a process printed; AssertionError with it where the process did not end well."""
        try:
            status: int | str = self.started[name].wait(timeout)
        except subprocess.TimeoutExpired:
            self.started[name].kill()
            status = f"not done after {timeout} s"
        self.files[name].seek(0)
        text = self.files[name].read()
        assert status == 0, f"{name}: {status}\n{text[-6000:]}"
        return text

    def end(self) -> None:
        """End what still runs."""
        for process in self.started.values():
            if process.poll() is None:
                process.kill()
                process.wait()
        for file in self.files.values():
            file.close()


@pytest.fixture(scope="session")
def jobs(request: pytest.FixtureRequest, device: torch.device) -> Iterator[Jobs]:
    """The processes of `APART`, on a GPU and where its tests were asked for."""
    is_wanted = device.type == "cuda" and any(item.path == HERE / APART for item in request.session.items)
    found = Jobs(JOBS if is_wanted else {})
    yield found
    found.end()
