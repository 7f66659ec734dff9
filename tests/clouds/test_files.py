"""The cluster files: what Ray makes of them, what AWS is asked for, and that they share what must not differ."""

import boto3
import pytest
import yaml
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.util import prepare_config, validate_config

from raylth.cluster.nodes import down
from raylth.cluster.nodes.capacity import machines, startable
from raylth.cluster.slots import room
from tests.clouds.aws import ROOT, account, bootstrapped, instances

FILES = {"aws": ROOT / "cluster.yaml", "gcp": ROOT / "clusters/gcp.yaml", "local": ROOT / "clusters/local.yaml"}
SHARED = ("file_mounts", "setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
WORKERS = ("spot-l40s", "spot-l4", "spot-a10g", "on-demand-l4")


def read(name):
    return yaml.safe_load(FILES[name].read_text())


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_each_file(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = prepare_config(read(name))
    validate_config(config)
    assert config["cluster_name"] == "raylth"
    assert config["provider"]["type"] == name


@pytest.mark.parametrize("name", FILES)
def test_what_runs_on_a_machine_is_the_same_everywhere(name):
    ours, theirs = ({part: read(file)[part] for part in SHARED} for file in (name, "aws"))
    if name == "local":  # machines that are not paid by the hour continue
        ours["setup_commands"] = [command.removeprefix("RAYLTH_LIFETIME_HOURS=0 ") for command in ours["setup_commands"]]
        assert ours["setup_commands"] != read(name)["setup_commands"]
    assert ours == theirs
    assert all(mounted.startswith("~/") for mounted in read(name)["file_mounts"])
    for local in read(name)["file_mounts"].values():
        made = ("dist", "~/.ray/auth_token")  # by make cluster-files
        assert local in made or (ROOT / local).exists(), local


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_workers_come_when_they_are_needed_and_spot_comes_first(name):
    types = read(name)["available_node_types"]
    workers = {key: kind for key, kind in types.items() if key != "head"}
    assert all(kind["min_workers"] == 0 for kind in workers.values())
    assert {tuple(kind["resources"].items()) for kind in workers.values()} == {(("CPU", 8), ("GPU", 1))}, "one for another"
    by_priority = sorted(workers, key=lambda key: -workers[key]["priority"])
    assert [key.split("-")[0] for key in by_priority] == ["spot"] * (len(workers) - 1) + ["on"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert read(name)["idle_timeout_minutes"] <= 10


def test_a_sweep_counts_on_the_machines_that_may_come(tmp_path, monkeypatch):
    """Sixteen may, of three types, and eight at a time; a head without CPUs is none of them."""
    head, worker = {"CPU": 0.0, "memory": 1.0}, {"CPU": 8.0, "GPU": 1.0}
    file = tmp_path / "bootstrap.yaml"
    file.write_text(yaml.safe_dump(read("aws")))
    for alive, number in (([head], 8), ([head, worker, worker], 8)):
        monkeypatch.setattr("ray.nodes", lambda alive=alive: [{"Alive": True, "Resources": node} for node in alive])
        found = machines(str(file))
        assert sum(node.get("GPU", 0) for node in found) == number
        assert room(found, 8, 1.0) == number
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": worker}, {"Alive": False, "Resources": worker}])
    assert machines(str(tmp_path / "none.yaml")) == [worker], "a cluster that does not grow"
    assert startable(read("local")) == []
    kinds = {
        "head": {},
        "one": {"resources": worker, "max_workers": 8},
        "four": {"resources": {"CPU": 32, "GPU": 4}, "max_workers": 1},
    }
    few = startable({"head_node_type": "head", "max_workers": 4, "available_node_types": kinds})
    assert [node["GPU"] for node in few] == [1.0, 4, 1.0, 1.0], "a type that is seldom is there all the same"


@pytest.fixture(scope="module")
def aws(tmp_path_factory):
    """What AWS holds after the roles were made, the head, and one worker of each type, up to where SSH would begin."""
    with account(tmp_path_factory.mktemp("home")):
        config = bootstrapped()
        provider = _get_node_provider(config["provider"], config["cluster_name"])
        for name, kind in config["available_node_types"].items():
            tags = {"ray-node-type": "head" if name == "head" else "worker", "ray-user-node-type": name}
            provider.create_node(kind["node_config"], tags, 1)
        yield boto3.client("ec2")


def test_aws_is_asked_for_spot_machines_and_one_kind_without(aws):
    found = dict(instances())
    assert set(found) == {"head", *WORKERS}
    assert {name: machine.get("InstanceLifecycle") for name, machine in found.items()} == {
        "head": None, "spot-l40s": "spot", "spot-l4": "spot", "spot-a10g": "spot", "on-demand-l4": None,
    }  # fmt: skip
    assert len({machine["InstanceType"] for name, machine in found.items() if name.startswith("spot")}) == 3
    assert {machine["ImageId"] for machine in found.values()} == {
        read("aws")["available_node_types"]["head"]["node_config"]["ImageId"]
    }


def test_nothing_but_ssh_comes_in_from_outside(aws):
    groups = {group["GroupId"] for machine in dict(instances()).values() for group in machine["SecurityGroups"]}
    (group,) = [found for found in aws.describe_security_groups()["SecurityGroups"] if found["GroupId"] in groups]
    assert group["GroupName"] == "raylth"
    assert {tag["Key"]: tag["Value"] for tag in group["Tags"]}["ray-cluster-name"] == "raylth"
    from_outside = [rule for rule in group["IpPermissions"] if rule["IpRanges"] or rule.get("Ipv6Ranges")]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in from_outside] == [(22, 22)]
    for rule in group["IpPermissions"]:
        assert rule in from_outside or {pair["GroupId"] for pair in rule["UserIdGroupPairs"]} == {group["GroupId"]}


def test_machines_have_roles_instead_of_keys_and_names_by_which_they_are_found(aws):
    for name, machine in dict(instances()).items():
        profile = machine["IamInstanceProfile"]["Arn"].rpartition("/")[2]
        assert profile == ("raylth-head" if name == "head" else "raylth-worker")
        assert {tag["Key"]: tag["Value"] for tag in machine["Tags"]}["ray-cluster-name"] == "raylth"
    tagged = aws.describe_volumes(Filters=[{"Name": "tag:ray-cluster-name", "Values": ["raylth"]}])["Volumes"]
    assert len(tagged) == len(dict(instances())), "disks are found by the same name"
    policies = boto3.client("iam").list_role_policies(RoleName="raylth-worker")["PolicyNames"]
    assert policies == ["bucket"], "a worker can reach the bucket, and start nothing"
    text = (ROOT / "cluster.yaml").read_text()
    assert "aws_access_key" not in text.lower()


def test_the_way_down_names_what_costs_on(aws, capsys):
    """Last of all: Ray ends the machines, one comes back, and a disk stays behind."""
    file, seen = str(FILES["aws"]), []
    numbers = [machine["InstanceId"] for machine in dict(instances()).values()]
    stranger = aws.run_instances(ImageId="ami-12345678", MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]

    def ray_down(asked):
        seen.append(asked)
        aws.terminate_instances(InstanceIds=numbers[1:])
        return 0

    assert down.main(["down", file], ray=ray_down) == 1
    assert seen == [file]
    output = capsys.readouterr().out
    assert f"instance {numbers[0]}: " in output
    assert not any(number in output for number in (*numbers[1:], stranger)), "what has ended, and what is not ours"
    aws.terminate_instances(InstanceIds=numbers)
    for volume in aws.describe_volumes(Filters=[{"Name": "tag:ray-cluster-name", "Values": ["raylth"]}])["Volumes"]:
        aws.delete_volume(VolumeId=volume["VolumeId"])
    disk = aws.create_volume(
        AvailabilityZone="us-west-2a",
        Size=7,
        TagSpecifications=[{"ResourceType": "volume", "Tags": [{"Key": "ray-cluster-name", "Value": "raylth"}]}],
    )["VolumeId"]
    assert down.main(["down", file], ray=lambda _: 0) == 1
    assert capsys.readouterr().out == f"volume {disk}: 7 GB, not attached\n"
    aws.delete_volume(VolumeId=disk)
    assert down.main(["down", file], ray=lambda _: 0) == 0
    assert "nothing that incurs costs is left of raylth in us-west-2" in capsys.readouterr().out
    assert down.main(["down", file], ray=lambda _: 3) == 3, "the exit status of ray down"


def test_what_is_no_cluster_file_is_one_line(tmp_path, capsys):
    assert down.main(["down", str(tmp_path / "none.yaml")]) == 2
    (tmp_path / "sweep.yaml").write_text("name: a")
    assert down.main(["down", str(tmp_path / "sweep.yaml")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert down.main(["down", str(FILES["local"])], ray=lambda _: 0) == 0
    assert "for AWS only, and this cluster is on local" in capsys.readouterr().out
