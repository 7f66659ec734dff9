"""The file for Kubernetes: KubeRay's fields, what Ray's autoscaler makes of it, and the image that it names."""

import re
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from raylth.config.load import read_sweep

ROOT = Path(__file__).parents[2]


@pytest.fixture
def resource() -> dict:
    return yaml.safe_load((ROOT / "clusters/kuberay.yaml").read_text())


def test_kuberay_knows_every_field(resource):
    schema = yaml.safe_load((Path(__file__).parent / "raycluster-schema.yaml").read_text())
    jsonschema.validate(resource, schema)
    resource["spec"]["authOption"] = resource["spec"].pop("authOptions")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(resource, schema)


def test_rays_autoscaler_reads_workers_that_come_spot_first_and_serve_the_same(resource):
    resource["metadata"]["namespace"] = "default"
    types = _derive_autoscaling_config_from_ray_cr(resource)["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    elsewhere = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]["spot-l4"]["resources"]
    for name in ("spot", "on-demand"):
        assert types[name]["min_workers"] == 0
        assert {kind: types[name]["resources"][kind] for kind in ("CPU", "GPU")} == elsewhere
    assert types["spot"]["priority"] > types["on-demand"].get("priority", 0)


def test_nobody_joins_without_the_token_and_all_run_the_pinned_ray(resource):
    spec = resource["spec"]
    assert spec["authOptions"] == {"mode": "token", "secretName": "raylth-token"}
    assert spec["rayVersion"] == version("ray")
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    containers = [container for group in groups for container in group["template"]["spec"]["containers"]]
    assert {container["image"] for container in containers} == {"MY-REGISTRY/raylth"}
    for group in spec["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] >= 60, "Ray drains for 30 s"
        assert {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]} == {"/scratch"}


def test_the_image_is_made_as_a_machine_is(resource):
    lines = (ROOT / "clusters/Dockerfile").read_text()
    copied = dict(re.findall(r"^COPY (\S+) /root/(\S+)$", lines, re.MULTILINE))
    mounted = yaml.safe_load((ROOT / "cluster.yaml").read_text())["file_mounts"]
    token = "~/.ray/auth_token"  # from the secret, not in the image
    assert {f"~/{there}": here for here, there in copied.items()} == {k: v for k, v in mounted.items() if k != token}
    assert "scripts/node-setup.sh" in lines
    assert "RAYLTH_LIFETIME_HOURS=0 RAYLTH_SCRATCH= sh" in lines


@pytest.fixture
def job() -> dict:
    return yaml.safe_load((ROOT / "clusters/kuberay-job.yaml").read_text())


def test_kuberay_knows_every_field_of_the_job(job):
    folder = Path(__file__).parent
    schema = yaml.safe_load((folder / "rayjob-schema.yaml").read_text())
    cluster = yaml.safe_load((folder / "raycluster-schema.yaml").read_text())
    schema["properties"]["spec"]["properties"]["rayClusterSpec"] = cluster["properties"]["spec"]
    jsonschema.validate(job, schema)
    for place, name in ((job["spec"], "backoffLimit"), (job["spec"]["rayClusterSpec"], "authOptions")):
        value = place.pop(name)
        place[f"{name}s"] = value
        with pytest.raises(jsonschema.ValidationError, match=f"'{name}s' was unexpected"):
            jsonschema.validate(job, schema)
        place[name] = place.pop(f"{name}s")


def test_the_jobs_cluster_is_the_other_files_with_a_dashboard_that_the_operator_reaches(job, resource):
    ours, theirs = job["spec"]["rayClusterSpec"], resource["spec"]
    assert theirs["headGroupSpec"]["rayStartParams"].pop("dashboard-host") == "127.0.0.1"
    assert ours == theirs, "where no dashboard-host is given, KubeRay lets it answer all pods"
    assert ours["authOptions"]["mode"] == "token", "which only those with the token may use"


def test_the_job_runs_a_sweep_of_the_image_resumes_it_and_leaves_no_cluster(job, tmp_path):
    spec = job["spec"]
    python, dash_m, module, sweep, *words = spec["entrypoint"].split()
    assert (python, dash_m, module) == ("python", "-m", "raylth.sweep")
    mounts = re.findall(r"^COPY (\S+) (\S+)$", (ROOT / "clusters/Dockerfile").read_text(), re.MULTILINE)
    (file,) = [ROOT / sweep.replace(there, here, 1) for here, there in mounts if sweep.startswith(f"{there}/")]
    options = [word for word in words if "=" not in word]
    assert options == ["--address", "auto"], "on the cluster, or not at all"
    settings = [word for word in words if "=" in word]
    read_sweep(file, [word.replace("s3://MY-BUCKET", str(tmp_path)) for word in settings])
    assert spec["backoffLimit"] > 0, "the same command on a new cluster"
    assert spec["submitterConfig"]["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"]
