"""Everything that is to be measured on a GPU, in one run: each step a process with a time limit of its own.

    python benchmarks/gpu_protocol.py [--plan gpu|slice|cpu] [--out FOLDER] [--only STEP ...] [--seconds 560]

`gpu` is what a card is met with first (560 s in all), `slice` trains a slice of the paper's Table 5, `cpu` runs the whole of
it, reduced, on a CPU. A step that fails or runs out of time is noted, and the next one begins; what a step had measured until
then is kept. `protocol.json` in the folder has all figures, and is written anew after each step; `log.txt` has what the steps
printed; tables of the sweeps lie beside them. The summary comes last, each figure beside what was predicted for it
(from bytes and operations, before any card was at hand). The exit status is 0 when every step ended with figures.

On a machine with nothing but torch, numpy and the like, `. .gpu/install.sh` brings what is missing.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULT = "RESULT "  # begins a line of a step's output that holds all its figures so far, as JSON


@dataclass(frozen=True)
class Step:
    """A part of a plan: a command, and how many seconds it may take."""

    name: str
    limit: float
    command: tuple[str, ...]


def script(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, str(HERE / name), *arguments)


def plan(name: str, out: Path) -> list[Step]:
    """Return the steps of a plan, in order."""
    if name == "slice":
        return [Step("machine", 40, script("gpu_machine.py", "machine")), Step("slice", 560, _slice(out))]
    how = ("--device", "cpu", "--reduced") if name == "cpu" else ()
    steps = [
        Step("machine", 40, script("gpu_machine.py", "machine", *how)),
        Step("tests", 130, script("gpu_machine.py", "tests", *how)),
        Step("convolutions", 60, script("gpu_machine.py", "convolutions", *how)),
        Step("engines", 120, script("gpu_engines.py", "engines", *how)),
        Step("stacked", 80, script("gpu_engines.py", "stacked", *how)),
        Step("resnet50", 90, script("gpu_engines.py", "resnet50", *how)),
        Step("precision", 75, script("gpu_engines.py", "precision", *how)),
        Step("ray", 150, script("gpu_sweeps.py", "ray", *how)),
        Step("slice", 120, (*_slice(out), "--short", *how)),
    ]
    return [replace(step, limit=2 * step.limit) for step in steps] if name == "cpu" else steps  # other work may be beside it


def _slice(out: Path) -> tuple[str, ...]:
    return script("gpu_sweeps.py", "slice", "--out", str(out))


def environment(name: str) -> dict[str, str]:
    """Return what the steps run with: the checkout first, a Ray of their own, and on a CPU Triton interpreted."""
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "RAY_ADDRESS": "local"}
    return {**found, "TRITON_INTERPRET": "1", "RAYLTH_GPU_TESTS": "cpu"} if name == "cpu" else found


def run(step: Step, seconds: float, log: Any, env: dict[str, str]) -> dict[str, Any]:
    """Run a step within so many seconds; returns its figures and how it ended."""
    start, figures, last = time.monotonic(), dict[str, Any](), ""
    process = subprocess.Popen(
        step.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**env, "RAYLTH_STEP_SECONDS": str(seconds)},
        cwd=HERE.parent,
    )  # fmt: skip
    late = threading.Event()

    def end() -> None:
        late.set()
        for number, wait in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 0.0)):
            try:
                os.killpg(process.pid, number)
                process.wait(wait) if wait else None
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                return

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(RESULT):
                figures = json.loads(line.removeprefix(RESULT))
                continue
            log.write(line)
            log.flush()
            last = line.strip() or last
        code = process.wait()
    finally:
        timer.cancel()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what the step left behind
    status = "time is up" if late.is_set() else "done" if code == 0 else f"exit status {code}: {last[:200]}"
    return {"status": status, "seconds": round(time.monotonic() - start, 1), "limit": round(seconds, 1), **figures}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the summary: a line for each figure, with what was predicted."""
    rows = [("step", "figure", "measured", "unit", "predicted")]
    for name, step in found.items():
        rows.append((name, step["status"], f"{step['seconds']:g}", f"s of {step['limit']:g}", ""))
        for figure in step.get("figures", ()):
            rows.append(("", figure["name"], _number(figure["value"]), figure["unit"], figure.get("predicted", "")))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(
            cell.rjust(width) if column == 2 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", choices=["gpu", "slice", "cpu"], default="gpu")
    parser.add_argument("--out", type=Path, help="folder for the figures; $OUT, or a new temporary one")
    parser.add_argument("--only", nargs="+", help="of these steps alone")
    parser.add_argument("--seconds", type=float, help="of the whole; no step continues beyond them; 560, and 1,100 on a CPU")
    options = parser.parse_args()
    whole = options.seconds or (1100.0 if options.plan == "cpu" else 560.0)
    out = options.out or Path(os.environ.get("OUT") or tempfile.mkdtemp(prefix="gpu-protocol-"))
    out.mkdir(parents=True, exist_ok=True)
    steps = [step for step in plan(options.plan, out) if not options.only or step.name in options.only]
    start, found = time.monotonic(), dict[str, dict[str, Any]]()
    with (out / "log.txt").open("w") as log, tempfile.TemporaryDirectory() as measured:
        env = {**environment(options.plan), "RAYLTH_MEASURED": measured}  # what one step's sweeps measure, the next ones read
        for step in steps:
            left = whole - (time.monotonic() - start)
            log.write(f"\n=== {step.name}\n")
            if left < 5:
                found[step.name] = {"status": "no time was left", "seconds": 0.0, "limit": 0.0}
            else:
                found[step.name] = run(step, min(step.limit, left), log, env)
            (out / "protocol.json.part").write_text(json.dumps({"plan": options.plan, "steps": found}, indent=1))
            (out / "protocol.json.part").replace(out / "protocol.json")
            print(f"{step.name}: {found[step.name]['status']} in {found[step.name]['seconds']:g} s", flush=True)
    print(f"\n{table(found)}\n\n{out / 'protocol.json'}")
    return int(any(step["status"] != "done" or not step.get("figures") for step in found.values()))


if __name__ == "__main__":
    sys.exit(main())
