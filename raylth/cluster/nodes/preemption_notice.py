"""Reports a preemption notice to Ray: `python -m raylth.cluster.nodes.preemption_notice HEAD:PORT`, on each worker.

A spot machine learns from its cloud's metadata server that it will end, two minutes before on AWS and half a minute on
Google Cloud. Ray then drains it: trainings save their state at their next step, and continue elsewhere. With `--all WHY` the
notice has come already, for every machine: a batch scheduler will end them together (clusters/slurm.sbatch).
"""

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence

from ray.util import get_node_ip_address

from raylth.cluster.ray_private import drain_machine
from raylth.common.exit_codes import ExitCode

__all__ = ["main", "watch"]

METADATA = "http://169.254.169.254"  # of AWS, Google Cloud and others
ASK_SECONDS = 2.0
PATIENCE = 5  # questions without an answer, after which there is no such server here
NOTICE_SECONDS = 120


def main(arguments: Sequence[str] | None = None) -> int:
    """Wait for a notice and drain this machine; returns at once where no cloud is, and with `--all`."""
    parser = argparse.ArgumentParser(prog="python -m raylth.cluster.nodes.preemption_notice", description=__doc__)
    parser.add_argument("head", help="address of Ray's head, with its port")
    parser.add_argument("--address", default=None, help="this machine's address in Ray (default: the one that Ray uses)")
    parser.add_argument("--all", metavar="WHY", help="drain every machine of the cluster now, for this reason")
    options = parser.parse_args(arguments)
    if options.all is not None:
        drain_machine(options.head, None, options.all, NOTICE_SECONDS)
        return ExitCode.OK
    why = watch(os.environ.get("RAYLTH_METADATA", METADATA))
    if why is None:
        print("no metadata server responds: this machine gets no notice", file=sys.stderr)
        return ExitCode.OK
    print(f"drained: {why}", flush=True)
    drain_machine(options.head, options.address or get_node_ip_address(), why, NOTICE_SECONDS)
    return ExitCode.OK


def watch(server: str, sleep: Callable[[float], None] = time.sleep) -> str | None:
    """Ask until there is a notice, and return what it says; None when no metadata server answers."""
    silent = 0
    while silent < PATIENCE:
        try:
            notice = _aws(server) or _google(server)
            silent = 0
        except OSError:
            notice, silent = None, silent + 1
        if notice is not None:
            return notice
        sleep(ASK_SECONDS)
    return None


def _aws(server: str) -> str | None:
    """Ask AWS (its metadata service, version 2); status 404 is no notice."""
    token = _ask(f"{server}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT")
    if token is None:
        return None
    answer = _ask(f"{server}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    if answer is None:
        return None
    notice = json.loads(answer)
    return f"AWS will {notice['action']} this machine at {notice['time']}"


def _google(server: str) -> str | None:
    answer = _ask(f"{server}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return "Google Cloud will end this machine" if answer == "TRUE" else None


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """Return the answer, None for one that says no; OSError when there is none."""
    request = urllib.request.Request(url, headers=headers, method=method)  # http, on this machine's own link
    try:
        with urllib.request.urlopen(request, timeout=ASK_SECONDS) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError:
        return None


if __name__ == "__main__":
    sys.exit(main())
