"""A sweep that is sent to a cluster which `ray up` made, from a laptop that may go away."""

import hashlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from raylth.cluster.address import ClusterError
from raylth.common.exit_codes import ExitCode

__all__ = ["Ran", "ray_command", "read_cluster_file", "send"]

BEGIN, END, WHEELS = "== raylth begins", "== raylth ended with ", "~/raylth/dist"
Ran = tuple[int, str]  # exit status, output


def ray_command(*words: str) -> Ran:
    """Run one of Ray's own commands; returns its status and all that it printed."""
    ray = str(Path(sys.executable).parent / "ray")
    done = subprocess.run([ray, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout


def read_cluster_file(file: str) -> dict[str, Any]:
    """Read a cluster file; ClusterError, in one line, for what is none."""
    try:
        config: dict[str, Any] = yaml.safe_load(Path(file).read_text())
        _ = config["cluster_name"], config["provider"]["type"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ClusterError(f"{file}: is not a cluster file: {' '.join(str(error).split())}") from error
    return config


def send(
    cluster: str, sweep: str, words: Sequence[str], storage: str, ray: Callable[..., Ran] = ray_command
) -> tuple[int, str]:
    """Start a sweep on a cluster's head; `words` are the settings that replace the file's, and options.

    The head runs the wheel that `ray up` shipped: raises ClusterError when that is not the one beside the cluster file, and
    when the head does not answer. Returns the sweep's status, 0 as soon as it trains, and a message for the user.
    """
    _check_wheel(cluster, read_cluster_file(cluster), ray)
    name = Path(sweep).name
    _run(ray, "rsync-up", cluster, sweep, f"~/raylth/sent/{name}")
    start = f"sh ~/raylth/scripts/start-sweep.sh {shlex.join([name, *words])}"
    _, output = ray("exec", cluster, f"echo '{BEGIN}'; {start}; echo '{END}'$?")  # ray exec has 1 for any status
    found = re.search(f"^{BEGIN}$(.*)^{END}(\\d+)", output.replace("\r", ""), re.MULTILINE | re.DOTALL)
    if found is None:
        raise ClusterError(f"{cluster}: its head does not answer: {_last(output)}")
    message = found[1].strip()
    if int(found[2]):
        return int(found[2]), message
    on_head = f"ray exec {cluster} "
    follow = shlex.join(["tail", "-f", f"raylth/sent/{Path(sweep).stem}.log"])
    inside = f"cd raylth && venv/bin/python -m raylth.status {shlex.quote(storage)}"
    state = f"python -m raylth.status {storage}" if "://" in storage else f"{on_head}{shlex.quote(inside)}"
    lines = ["the sweep runs on the head and continues without this machine", f"its output: {on_head}{shlex.quote(follow)}"]
    return ExitCode.OK, "\n".join([message, *lines, f"progress: {state}"])


def _check_wheel(cluster: str, config: dict[str, Any], ray: Callable[..., Ran]) -> None:
    """Compare the wheel on the head with the one that `ray up` would ship now."""
    mounted = config.get("file_mounts", {}).get(WHEELS)
    ours = sorted(Path(mounted).expanduser().glob("raylth-*.whl")) if mounted else []
    if len(ours) != 1:
        raise ClusterError(f"{cluster}: expected one wheel of raylth in {mounted}, found {len(ours)}: run make cluster-files")
    digest = hashlib.sha256(ours[0].read_bytes()).hexdigest()
    there = _run(ray, "exec", cluster, "mkdir -p ~/raylth/sent; sha256sum ~/raylth/dist/raylth-*.whl")
    if digest not in there:
        raise ClusterError(f"{cluster}: its head has a different raylth than {ours[0]}: run ray up again")


def _run(ray: Callable[..., Ran], *words: str) -> str:
    status, output = ray(*words)
    if status:
        raise ClusterError(f"ray {shlex.join(words)} ended with status {status}: {_last(output)}")
    return output


def _last(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
