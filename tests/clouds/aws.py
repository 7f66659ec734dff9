"""A stand-in of AWS (moto) in which `cluster.yaml` is at home."""

from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private import commands
from ray.autoscaler._private.util import prepare_config

ROOT = Path(__file__).parents[2]


@contextmanager
def account(home):
    """An account whose roles were made from the template, and the environment of a person at a laptop."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        (home / ".ssh").mkdir()
        patch.setenv("HOME", str(home))
        patch.chdir(ROOT)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-west-2")
        boto3.client("cloudformation").create_stack(
            StackName="raylth-roles",
            TemplateBody=(ROOT / "clusters/aws-roles.yaml").read_text(),
            Parameters=[{"ParameterKey": "Bucket", "ParameterValue": "my-bucket"}],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        yield


def bootstrapped():
    """Return `cluster.yaml` as `ray up` leaves it on the head: with subnets, images, keys and the security group."""
    config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    return commands._bootstrap_config(config, no_config_cache=True)


def instances():
    """Return what AWS holds, as (type of machine in the cluster file, instance)."""
    groups = boto3.client("ec2").describe_instances()["Reservations"]
    return [
        (tag["Value"], machine)
        for group in groups
        for machine in group["Instances"]
        for tag in machine["Tags"]
        if tag["Key"] == "ray-user-node-type"
    ]
