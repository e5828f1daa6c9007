"""Manifests against the schemas of whoever reads them: Kubernetes, and KubeRay's custom resource definitions."""

import functools
import shutil
import subprocess
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cluster.plans.schema import read_plan
from tests.deploy.files import CRDS, KUBERNETES, Manifest, manifest, manifests, pod_specs

_KUBERNETES = "1.34"
"""The version whose schemas are asked; that of the kubectl image in cronjob.yaml."""
_RAY = [each for each in manifests() if each.of_ray]
_PLAIN = [each for each in manifests() if not each.of_ray]
_PODS = [(f"{each}{where}", spec) for each in manifests() for where, spec in pod_specs(each.body)]


def strict(schema: Any) -> Any:
    """A structural schema as JSON Schema that refuses unknown fields, which Kubernetes would drop without a word."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    if result.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
    elif isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


@functools.cache
def definition_of(kind: str, api_version: str) -> jsonschema.Draft202012Validator:
    """What refuses objects of a kind that do not fit KubeRay's definition."""
    path = CRDS / f"ray.io_{kind.lower()}s.yaml"
    if not path.is_file():
        pytest.skip(f"KubeRay's definitions are not here; this test wants {path.name} in ../shared/crds")
    definition = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["spec"]  # the safe loader, in C
    group, _, wanted = api_version.partition("/")
    (version,) = [version for version in definition["versions"] if version["name"] == wanted]
    assert (definition["group"], version["served"]) == (group, True)
    return jsonschema.Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))


@pytest.mark.parametrize("each", _RAY, ids=str)
def test_rays_kinds_fit_their_definitions_and_have_no_unknown_field(each: Manifest) -> None:
    definition_of(each.kind, each.body["apiVersion"]).validate(each.body)
    assert set(each.body) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(each.body["metadata"]) <= {"name", "generateName", "namespace", "labels"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("authOption",), {"mode": "token"}),
        (("authOptions", "mode"), "tokens"),
        (("workerGroupSpecs", 0, "maxReplicas"), "many"),
        (("headGroupSpec", "template", "spec", "containers", 0, "resource"), {}),
        (("headGroupSpec", "template", "spec", "containers", 0, "resources", "limits", "memory"), "16 GiB"),
    ],
)
def test_a_mistake_in_a_ray_cluster_is_found(path: tuple[str | int, ...], value: Any) -> None:
    each = manifest("RayCluster")
    place: Any = each.body["spec"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        definition_of(each.kind, each.body["apiVersion"]).validate(each.body)


@pytest.mark.parametrize("each", _PLAIN, ids=str)
def test_kubernetes_kinds_fit_their_schemas(each: Manifest) -> None:
    kubernetes_validate.validate(each.body, _KUBERNETES, strict=True)


@pytest.mark.parametrize(("where", "spec"), _PODS, ids=[where for where, _ in _PODS])
def test_pods_of_ray_clusters_are_pods_to_kubernetes(where: str, spec: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
    kubernetes_validate.validate(pod, _KUBERNETES, strict=True)


def test_the_two_ways_to_refresh_nightly_say_the_same() -> None:
    plain, of_ray = manifest("CronJob").body["spec"], manifest("RayCronJob").body["spec"]
    assert (plain["schedule"], plain["timeZone"]) == (of_ray["schedule"], of_ray["timeZone"])
    assert manifest("RayJob", "refresh.yaml").body["spec"] == of_ray["jobTemplate"]
    assert plain["concurrencyPolicy"] == "Forbid"


def test_the_nightly_job_may_create_what_it_creates_and_nothing_else() -> None:
    role, refresh = manifest("Role").body, manifest("RayJob", "refresh.yaml").body
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]
    account = manifest("CronJob").body["spec"]["jobTemplate"]["spec"]["template"]["spec"]["serviceAccountName"]
    (subject,) = manifest("RoleBinding").body["subjects"]
    assert manifest("RoleBinding").body["roleRef"]["name"] == role["metadata"]["name"]
    assert account == subject["name"] == manifest("ServiceAccount").body["metadata"]["name"]
    assert refresh["metadata"]["name"]  # fixed, so that a second one is refused
    rules = refresh["spec"]["deletionStrategy"]["deletionRules"]
    ends = {value for rule in rules for key, value in rule["condition"].items() if key != "ttlSeconds"}
    assert ends == {"SUCCEEDED", "FAILED", "Failed"}  # however it ended, it makes way for the next night's
    assert {rule["policy"] for rule in rules} == {"DeleteSelf"}


@pytest.mark.parametrize("each", [each for each in _RAY if each.kind != "RayCluster"], ids=str)
def test_jobs_go_to_the_ray_cluster_that_is_there(each: Manifest) -> None:
    spec = each.body["spec"].get("jobTemplate", each.body["spec"])
    assert spec["clusterSelector"] == {"ray.io/cluster": manifest("RayCluster").body["metadata"]["name"]}


def test_everything_is_in_one_namespace_that_is_there() -> None:
    name = manifest("Namespace").body["metadata"]["name"]
    assert {each.body["metadata"].get("namespace") for each in manifests() if each.kind != "Namespace"} == {name}


def test_network_policies_name_pods_ports_and_the_operator_as_they_are() -> None:
    cluster = manifest("RayCluster").body
    ports = {
        port["containerPort"]
        for _, spec in pod_specs(cluster)
        for container in spec["containers"]
        for port in container["ports"]
    }
    policies = {each.body["metadata"]["name"]: each.body["spec"] for each in manifests() if each.kind == "NetworkPolicy"}
    assert policies.pop("nobody-comes-in") == {"podSelector": {}, "policyTypes": ["Ingress"]}
    for policy in policies.values():
        assert policy["podSelector"]["matchLabels"]["ray.io/cluster"] == cluster["metadata"]["name"]
        assert {port["port"] for rule in policy["ingress"] for port in rule.get("ports", [])} <= ports
    operator = policies["operator-to-dashboard"]["ingress"][0]["from"][0]["namespaceSelector"]["matchLabels"]
    namespace = operator["kubernetes.io/metadata.name"]
    assert f"--namespace {namespace} --create-namespace" in (KUBERNETES.parent / "README.md").read_text()


def test_the_plan_is_one_that_refresh_reads() -> None:
    assert read_plan(KUBERNETES / "plan.yaml").store.startswith("s3://")


def test_kustomize_puts_together_what_a_cluster_needs_and_starts_no_job() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on PATH, and kustomize with it")
    built = subprocess.run(["kubectl", "kustomize", KUBERNETES], capture_output=True, text=True, check=True).stdout
    objects = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(built)}
    assert {kind for kind, _ in objects} == {
        *("Namespace", "NetworkPolicy", "RayCluster", "CronJob", "ServiceAccount", "Role", "RoleBinding", "ConfigMap")
    }
    wanted = {
        volume["configMap"]["name"]
        for each in objects.values()
        for _, spec in pod_specs(each)
        for volume in spec.get("volumes", [])
        if "configMap" in volume
    }
    given = {name: each["data"] for (kind, name), each in objects.items() if kind == "ConfigMap"}
    assert set(given) == wanted
    assert given == {
        "affectome-plan": {"plan.yaml": (KUBERNETES / "plan.yaml").read_text()},
        "affectome-refresh": {"refresh.yaml": (KUBERNETES / "refresh.yaml").read_text()},
    }
    (account,) = [each for (kind, _), each in objects.items() if kind == "ServiceAccount"]
    assert account["metadata"]["namespace"] == manifest("Namespace").body["metadata"]["name"]
