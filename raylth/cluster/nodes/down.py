"""`python -m raylth.cluster down FILE`: shuts down a cluster that `ray up` started, and lists what is left of it."""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raylth.cluster.address import ClusterError
from raylth.cluster.submit import read_cluster_file
from raylth.common.exit_codes import ExitCode, describe

__all__ = ["left_on_aws", "main", "make_parser"]

TAG = "ray-cluster-name"
STATUSES = {
    ExitCode.OK: "nothing that incurs costs is left",
    ExitCode.FAILED: "something that incurs costs is left",
    ExitCode.BAD_INPUT: "not a cluster file",
}


def make_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m raylth.cluster",
        description=f"{__doc__}\n\nexample:\n  python -m raylth.cluster down cluster.yaml",
        epilog=describe(STATUSES, "else the exit status of ray down"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=["down"], help="shut down the cluster, and list what is left of it")
    parser.add_argument("file", help="the cluster file given to `ray up`")
    return parser


def main(arguments: Sequence[str] | None = None, ray: Callable[[str], int] | None = None) -> int:
    """Run `ray down`, then list by tag what is still alive; 0 when that is nothing, 1 when something still incurs costs."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        config = read_cluster_file(options.file)
    except ClusterError as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_INPUT
    name, provider = config["cluster_name"], config["provider"]
    status = (ray or _ray_down)(options.file)
    if provider["type"] != "aws":
        print(
            f"leftovers can be listed for AWS only, and this cluster is on {provider['type']}: check there for what is left"
        )
        return status
    left = left_on_aws(name, provider["region"])
    for line in left:
        print(line)
    if not left:
        print(f"nothing that incurs costs is left of {name} in {provider['region']}")
    return ExitCode.FAILED if left else status


def _ray_down(file: str) -> int:
    return subprocess.run([str(Path(sys.executable).parent / "ray"), "down", "-y", file], check=False).returncode


def left_on_aws(name: str, region: str) -> list[str]:
    """Return a line for each instance and each detached volume of a cluster that still incurs costs, found by its tag.

    A security group costs nothing, and Ray uses it again. What is shutting down counts as ended.
    """
    import boto3

    client: Any = boto3.client("ec2", region_name=region)
    ours = [{"Name": f"tag:{TAG}", "Values": [name]}]
    found = []
    for page in client.get_paginator("describe_instances").paginate(Filters=ours):
        for machine in (each for group in page["Reservations"] for each in group["Instances"]):
            if machine["State"]["Name"] not in ("terminated", "shutting-down"):
                found.append(f"instance {machine['InstanceId']}: {machine['InstanceType']}, {machine['State']['Name']}")
    for page in client.get_paginator("describe_volumes").paginate(Filters=ours):
        for volume in page["Volumes"]:
            if volume["State"] == "available":  # one in use is deleted with its machine
                found.append(f"volume {volume['VolumeId']}: {volume['Size']} GB, not attached")
    return found
