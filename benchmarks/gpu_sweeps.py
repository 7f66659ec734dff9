"""Steps of `gpu_protocol.py`: sweeps through Ray on the card, and a slice of the paper's Table 5.

    python benchmarks/gpu_sweeps.py ray|slice [--device cpu] [--reduced] [--short] [--out FOLDER]

`ray` runs a small sweep with `gpus: auto` (which packs, engines and shares are chosen), the same one while a worker is killed
with signal 9 (every artefact must have the same bits), and one whose packs do not fit in memory. `slice` runs
`sweeps/slice_table05_cifar10.yaml`, with --short a tenth of its epochs, and prints each arm beside the paper's.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from hardware import report_figures

from raylth.config.load import read_sweep
from raylth.report import load_results
from raylth.stages import make_plan
from raylth.store import Store

HERE = Path(__file__).resolve().parent
SLICE = HERE.parent / "sweeps" / "slice_table05_cifar10.yaml"
SHORT = ["dense.epochs=20", "imp.epochs_per_round=5", "sparse.rewinds=[1]", "seeds.replicates=1"]
TO_SAVE = 45.0  # seconds before a step's end, in which a sweep that is stopped saves its states and writes its tables
STARTED: list["subprocess.Popen[bytes]"] = []
PAPER = {"lth": 92.08, "permuted": 90.26, "naive": 90.16}  # Table 5, S = 0.80, k = 10
REDUCED = [
    "data={name: digits, num_train: 200, num_test: 100, augment: flip_crop}", "model={name: resnet20, widths: [0.25]}",
    *(f"resources.{kind}.gpus=0" for kind in ("dense", "imp", "match", "sparse")),
    *(f"{kind}.precision=float32" for kind in ("dense", "imp", "sparse")), "resources.engine=graph", "resources.pack=2",
]  # fmt: skip


def data_settings(reduced: bool) -> list[str]:
    """Return the settings that say where the images are."""
    if reduced:
        return REDUCED
    folder = next(
        (f for f in (HERE.parent / ".gpu/data", HERE.parent.parent / "shared/data/cifar10-jpeg") if f.exists()), None
    )
    if folder is None:
        sys.exit("CIFAR-10 is not there: carry it as .gpu/data")
    return [f"data={{name: cifar10, root: {folder}, layout: parquet, normalisation: imagenet}}"]


def small(reduced: bool) -> list[str]:
    """Return the settings of a sweep of every kind of stage that takes seconds."""
    few = [] if reduced else ["data.num_train=10000", "data.num_test=2000"]
    epochs = 2 if reduced else 12
    return [
        *data_settings(reduced), *few, f"dense.epochs={epochs}", f"imp.epochs_per_round={1 if reduced else 4}",
        "sparse.sparsities=[0.36]", f"sparse.rewinds={[0] if reduced else [0, 1]}", f"seeds.replicates={1 if reduced else 4}",
        "resources.state_every=1", "resources.state_seconds=0",
    ]  # fmt: skip


def sweep(storage: Path, settings: list[str]) -> "subprocess.Popen[bytes]":
    """Start a sweep as a command, which knows what earlier ones measured."""
    if (known := os.environ.get("RAYLTH_MEASURED")) and any(Path(known).iterdir()):
        shutil.copytree(known, storage / "measured", dirs_exist_ok=True)
    command = [sys.executable, "-m", "raylth.sweep", str(SLICE), f"storage={storage}", *settings]
    STARTED.append(subprocess.Popen(command, cwd=HERE.parent, start_new_session=True))
    return STARTED[-1]


def end_all(*signal_and_frame: Any) -> None:
    """End what this step has started, which is in sessions of its own, and then the step."""
    for process in STARTED:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    sys.exit("time is up")


def keep_measured(storage: Path) -> None:
    """Keep what a sweep measured for those that follow."""
    if (known := os.environ.get("RAYLTH_MEASURED")) and (storage / "measured").exists():
        shutil.copytree(storage / "measured", known, dirs_exist_ok=True)


def results(storage: Path) -> Any:
    """Return the rows of all trained networks of a store's only run."""
    (run,) = (storage / "runs").iterdir()
    return load_results(run)


def ray(device: str, reduced: bool, out: Path | None, short: bool) -> None:
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        stores = [Path(folder) / name for name in ("undisturbed", "killed", "scarce")]
        start = time.perf_counter()
        if sweep(stores[0], small(reduced)).wait():
            sys.exit("the sweep did not end well")
        keep_measured(stores[0])
        rows = results(stores[0])
        trained = rows[rows["epochs"] > 0]
        figures += [
            {"name": "a small sweep", "value": time.perf_counter() - start, "unit": f"s, {len(trained)} networks"},
            {"name": "packs", "value": _counted(trained["pack"]), "unit": "networks of each size"},
            {"name": "engines", "value": _counted(trained["engine"]), "unit": "networks of each"},
            {"name": "devices", "value": _counted(trained["device"]), "unit": ""},
        ]
        measured = [json.loads(path.read_text()) for path in sorted((stores[0] / "measured").glob("*.json"))]
        report_figures(figures, measured=measured)
        killed, resumed = _killed(stores[1], small(reduced))
        plan = make_plan(read_sweep(SLICE, small(reduced)))
        same, all_ = _same_artefacts(plan, *(Store(str(path)) for path in stores[:2]))
        figures += [
            {"name": "workers killed with signal 9", "value": killed, "unit": f"and the sweep ended with {resumed}"},
            {"name": "artefacts with the same bits", "value": same, "unit": f"of {all_}"},
        ]
        report_figures(figures, measured=measured)
        ended = _out_of_memory(stores[2], device, reduced)
        figures += [
            {"name": "packs without memory: stages done", "value": ended["done"], "unit": f"of {ended['stages']}"},
            {
                "name": "packs without memory: times",
                "value": ended["incidents"].get("out of memory", 0),
                "unit": "out of memory",
            },
            {"name": "packs without memory: sizes", "value": _counted(ended["packs"]), "unit": "networks of each"},
        ]
        report_figures(figures, measured=measured, out_of_memory=ended)
    if same < all_ or killed == 0 or ended["done"] < ended["stages"] or not ended["incidents"].get("out of memory"):
        sys.exit("a worker that was killed or ran out of memory left something else than it should")


def _counted(values: Any) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(Counter(map(str, values)).items()))


def _killed(storage: Path, settings: list[str]) -> tuple[int, str]:
    """Run a sweep, and kill all its workers once while they train; returns how many, and how the sweep ended."""
    process, killed, deadline = sweep(storage, settings), 0, time.monotonic() + 100
    while process.poll() is None and not killed and time.monotonic() < deadline:
        time.sleep(0.02)
        if not any((storage / "states").glob("*")):  # a training that has saved its state is in its middle
            continue
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if child.cmdline()[:1] and child.cmdline()[0].startswith("ray::_Inner"):
                    child.send_signal(signal.SIGKILL)
                    killed += 1
            except psutil.Error:
                continue
    return killed, f"status {process.wait()}"


def _same_artefacts(plan: Any, one: Store, other: Store) -> tuple[int, int]:
    """Count the artefacts of a plan whose every tensor is the same in two stores."""
    keys = [key for stage in plan.stages for key in stage.produces]
    return sum(_is_same(key, one, other) for key in keys), len(keys)


def _is_same(key: str, one: Store, other: Store) -> bool:
    if not (one.has(key) and other.has(key)) or one.files(key) != other.files(key):
        return False
    for name in one.files(key):
        first, second = one.read(key, name), other.read(key, name)
        if first.shape != second.shape or not (first == second).all():
            return False
    return True


def _out_of_memory(storage: Path, device: str, reduced: bool) -> dict[str, Any]:
    """Run a sweep whose packs do not fit in memory; returns how it ended."""
    command = [
        sys.executable,
        str(HERE / "gpu_sweep_driver.py"),
        *(["--fake"] if device == "cpu" else []),
        str(SLICE),
        str(storage),
    ]
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAYLTH_MEMORY_GB": "0.5"}
    if device == "cpu":
        whole = [f"resources.{kind}.gpus=1" for kind in ("dense", "imp", "sparse")]
        command += [
            "tests.scarce_memory",
            *small(reduced),
            *whole,
            "seeds.replicates=2",
            "sparse.rewinds=[0]",
        ]
    else:
        command += ["benchmarks.gpu_little_memory", *small(reduced), "resources.engine=eager"]  # its packs take the most
    ran = subprocess.run(
        [*command, "resources.pack=32"], env=env, cwd=HERE.parent, capture_output=True, text=True, check=False
    )
    ended = [line for line in ran.stdout.splitlines() if line.startswith("ENDED ")]
    if not ended:
        print(ran.stdout[-2000:], ran.stderr[-4000:])
        sys.exit("the sweep whose packs do not fit in memory did not end")
    found: dict[str, Any] = json.loads(ended[-1].removeprefix("ENDED "))
    return found


def slice_of_table_5(device: str, reduced: bool, out: Path | None, short: bool) -> None:
    settings = data_settings(reduced) + (SHORT if short else [])
    if reduced:
        settings += ["dense.epochs=2", "imp.epochs_per_round=1", "sparse.rewinds=[1]", "sparse.sparsities=[0.36]"]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process, is_stopped = sweep(Path(folder), settings), False
        seconds = float(os.environ.get("RAYLTH_STEP_SECONDS", "inf")) - TO_SAVE
        try:
            code = process.wait(seconds if seconds < float("inf") else None)
        except subprocess.TimeoutExpired:
            process.terminate()  # once: it saves its states and writes its tables
            is_stopped, code = True, process.wait()
        keep_measured(Path(folder))
        if not (Path(folder) / "runs").exists():
            sys.exit("the sweep had not begun when time was up")
        rows = results(Path(folder))
        trained = rows[(rows["epochs"] > 0) & (rows["status"] == "done")]
        taken = time.perf_counter() - start
        how = "stopped when time was up" if is_stopped else f"exit status {code}"
        figures: list[dict[str, Any]] = [
            {"name": "networks trained", "value": len(trained), "unit": f"in {taken:.0f} s, {how}"},
            {"name": "epochs a second", "value": float(trained["epochs"].sum()) / taken, "unit": "all networks, whole sweep"},
            {"name": "engines", "value": _counted(trained["engine"]), "unit": "networks of each"},
        ]
        for arm, paper in PAPER.items():
            found = trained[trained["arm"] == arm]["test_accuracy"]
            if len(found):
                spread = f" +- {found.std():.2f}" if len(found) > 1 else ""
                unit = f"%{spread}, n = {len(found)}"
                figures.append({"name": arm, "value": found.mean(), "unit": unit, "predicted": f"{paper} (paper)"})
        report_figures(figures, settings=settings)
        if out is not None and not reduced:
            rows.to_parquet(out / "slice-results.parquet")
    if code and not is_stopped:
        sys.exit(f"the sweep ended with status {code}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["ray", "slice"])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--reduced", action="store_true", help="small enough for a CPU")
    parser.add_argument("--short", action="store_true", help="a tenth of the slice's epochs, one replicate")
    parser.add_argument("--out", type=Path, help="folder for the slice's tables")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, end_all)
    {"ray": ray, "slice": slice_of_table_5}[options.step](options.device, options.reduced, options.out, options.short)


if __name__ == "__main__":
    main()
