"""What Ray's own autoscaler asks of AWS while AWS refuses: the real loop, the real provider, and a stand-in of AWS."""

import re
from collections import Counter

import pytest
import yaml
from botocore.exceptions import ClientError
from ray.autoscaler._private.autoscaler import StandardAutoscaler
from ray.autoscaler._private.load_metrics import LoadMetrics

from raylth.cluster.nodes import node_scorer
from tests.clouds.aws import ROOT, account, bootstrapped, instances

SPOT = ["spot-l40s", "spot-l4", "spot-a10g"]
GPU = {"CPU": 8.0, "GPU": 1.0}


@pytest.fixture
def autoscaler(tmp_path, monkeypatch):
    """The autoscaler of a head that has just started; `refused` are instance types that AWS does not have."""
    with account(tmp_path):
        config = {**bootstrapped(), "file_mounts": {}}
        config["provider"] |= {"foreground_node_launch": True, "disable_node_updaters": True}
        file = tmp_path / "bootstrap.yaml"
        file.write_text(yaml.safe_dump(config))
        monkeypatch.setattr(node_scorer, "BOOTSTRAP", str(file))
        start = (ROOT / "scripts/node-start.sh").read_text()
        (scorer,) = re.findall(r"RAY_AUTOSCALER_UTILIZATION_SCORER=(\S+)", start)
        assert "export RAY_enable_autoscaler_v2=0" in start
        monkeypatch.setenv("RAY_AUTOSCALER_UTILIZATION_SCORER", scorer)
        metrics = LoadMetrics()
        made = StandardAutoscaler(lambda: config, metrics, gcs_client=None, update_interval_s=0)
        head = config["available_node_types"]["head"]["node_config"]
        made.provider.create_node(head, {"ray-node-type": "head", "ray-user-node-type": "head"}, 1)
        made.refused = set()
        create = made.provider.ec2_fail_fast.create_instances

        def refuse(**asked):
            if (asked["InstanceType"], "InstanceMarketOptions" in asked) in made.refused:
                error = {"Code": "InsufficientInstanceCapacity", "Message": "there is none"}
                raise ClientError({"Error": error}, "RunInstances")
            return create(**asked | {"MinCount": asked["MaxCount"]})  # moto gives the fewest, AWS as many as it has

        monkeypatch.setattr(made.provider, "ec2_fail_fast", type("EC2", (), {"create_instances": staticmethod(refuse)}))
        yield made


def turn(autoscaler, wanted):
    """One turn of the autoscaler's loop while so many GPUs are asked for; returns the workers that there are."""
    autoscaler.load_metrics.set_resource_requests([GPU] * wanted)
    autoscaler.update()
    assert autoscaler.num_failures == 0
    return Counter(name for name, _ in instances() if name != "head")


def test_the_first_spot_type_is_asked_for_while_there_is_one(autoscaler):
    assert turn(autoscaler, 3) == {"spot-l40s": 3}


def test_what_is_refused_is_passed_over_and_on_demand_comes_last(autoscaler):
    types = autoscaler.config["available_node_types"]
    autoscaler.refused.add((types["spot-l40s"]["node_config"]["InstanceType"], True))
    assert turn(autoscaler, 2) == {}, "asked for, and refused"
    assert turn(autoscaler, 2) == {"spot-l4": 2}
    for name in SPOT:
        autoscaler.refused.add((types[name]["node_config"]["InstanceType"], True))
    for _ in range(3):
        turn(autoscaler, 5)
    assert turn(autoscaler, 5) == {"spot-l4": 2, "on-demand-l4": 2}, "its own max_workers holds"


def test_a_refused_type_is_asked_for_again_after_half_an_hour(autoscaler, monkeypatch):
    types = autoscaler.config["available_node_types"]
    autoscaler.refused = {(types[name]["node_config"]["InstanceType"], True) for name in SPOT}
    for _ in range(4):
        turn(autoscaler, 2)
    assert turn(autoscaler, 2) == {"on-demand-l4": 2}
    autoscaler.refused = set()
    tracker = autoscaler.node_provider_availability_tracker
    now = tracker.timer()
    monkeypatch.setattr(tracker, "timer", lambda: now + 31 * 60)
    assert turn(autoscaler, 3) == {"on-demand-l4": 2, "spot-l40s": 1}


def test_what_serves_nothing_of_it_has_no_score(autoscaler):
    summary = autoscaler.node_provider_availability_tracker.summary()
    assert node_scorer.score({"CPU": 0}, [GPU], "head", node_availability_summary=summary) is None
