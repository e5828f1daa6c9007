"""What no manifest may do, whatever else it says."""

import importlib.metadata
import re
import tomllib
from typing import Any

import pytest
import yaml

from tests.deploy.files import DEPLOY, KUBERNETES, ROOT, Container, Manifest, containers, manifest, manifests, pod_specs

_CONTAINERS = containers()
_VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_containers_are_found() -> None:
    names = [container.name.rpartition(":")[2] for container in _CONTAINERS]
    assert sorted(names) == ["autoscaler", "create", "ray-head", "ray-worker", "ray-worker"]


@pytest.mark.parametrize("container", _CONTAINERS, ids=str)
def test_no_container_has_a_way_to_more_rights_than_a_users(container: Container) -> None:
    context = container.body["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert context.get("privileged", False) is False
    assert context.get("runAsUser", 1) != 0


def test_the_namespace_refuses_pods_that_break_these_rules() -> None:
    assert manifest("Namespace").body["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_no_pod_shares_its_node() -> None:
    for each in manifests():
        for _, spec in pod_specs(each.body):
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
            assert not [volume for volume in spec.get("volumes", []) if "hostPath" in volume]
            assert spec.get("securityContext", {}).get("runAsUser", 1) != 0


@pytest.mark.parametrize("container", _CONTAINERS, ids=str)
def test_every_container_says_what_it_takes_at_least_and_at_most(container: Container) -> None:
    requests, limits = container.body["resources"]["requests"], container.body["resources"]["limits"]
    assert {"cpu", "memory"} <= set(requests)
    assert requests == limits  # Ray gives out what the limits say


@pytest.mark.parametrize("container", [each for each in _CONTAINERS if "image" in each.body], ids=str)
def test_every_image_has_a_version(container: Container) -> None:
    name, _, tag = container.body["image"].rpartition(":")
    assert name
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag)
    if name == "affectome":
        assert tag == _VERSION


def test_the_ray_cluster_runs_the_version_that_is_installed() -> None:
    assert manifest("RayCluster").body["spec"]["rayVersion"] == importlib.metadata.version("ray")


@pytest.mark.parametrize("each", [each for each in manifests() if each.of_ray], ids=str)
def test_every_ray_asks_for_a_token(each: Manifest) -> None:
    spec = each.body["spec"].get("jobTemplate", each.body["spec"])
    own = spec if each.kind == "RayCluster" else spec.get("rayClusterSpec")
    if own is None:  # it goes to a cluster of ours
        assert spec["clusterSelector"] == {"ray.io/cluster": manifest("RayCluster").body["metadata"]["name"]}
    else:
        assert own["authOptions"]["mode"] == "token"


def test_drivers_get_a_head_that_computes_nothing_and_workers_come_and_go() -> None:
    spec = manifest("RayCluster").body["spec"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["enableInTreeAutoscaling"] is True
    for group in spec["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
    takes = [pod_specs(group) for group in spec["workerGroupSpecs"]]
    gpus = ["nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"] for (_, pod), *_ in map(list, takes)]
    assert sorted(gpus) == [False, True]


def test_no_secret_says_anything() -> None:
    secrets = [each for each in manifests() if each.kind == "Secret"]
    assert secrets
    for each in secrets:
        assert set(each.body) <= {"apiVersion", "kind", "metadata", "type", "stringData"}
        assert set(each.body["stringData"].values()) == {""}
    applied = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    assert not {each.file for each in secrets} & set(applied)


def test_credentials_come_from_the_secret_alone() -> None:
    (secret,) = [each for each in manifests() if each.kind == "Secret"]
    ray = [container for container in _CONTAINERS if container.name.rpartition(":")[2].startswith("ray-")]
    for container in ray:
        assert container.body["envFrom"] == [{"secretRef": {"name": secret.body["metadata"]["name"]}}]
        assert "env" not in container.body


_LOOKS_SECRET = re.compile(r"AKIA[0-9A-Z]{16}|hf_[A-Za-z]{20,}|-----BEGIN|\b[0-9a-f]{40,}\b|[A-Za-z0-9/+]{40}=*(?![\w/])")


def test_nothing_in_deploy_looks_like_a_credential() -> None:
    files = [path for path in DEPLOY.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert not _LOOKS_SECRET.findall(path.read_text()), path


def test_what_is_mounted_is_there() -> None:
    for each in manifests():
        for where, spec in pod_specs(each.body):
            volumes: list[dict[str, Any]] = spec.get("volumes", [])
            mounted = {mount["name"] for body in spec["containers"] for mount in body.get("volumeMounts", [])}
            assert mounted == {volume["name"] for volume in volumes}, f"{each}{where}"
