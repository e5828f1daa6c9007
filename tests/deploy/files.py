"""What stands in deploy/, read for the tests."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
CRDS = ROOT.parent / "shared" / "crds"
"""KubeRay's custom resource definitions; the project passes its tests without them."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object of Kubernetes."""

    file: str
    """The name of its file."""
    body: dict[str, Any]
    """What the file says."""

    @property
    def kind(self) -> str:
        """Such as RayCluster."""
        return str(self.body["kind"])

    @property
    def of_ray(self) -> bool:
        """Whether KubeRay is to understand it, rather than Kubernetes."""
        return str(self.body["apiVersion"]).startswith("ray.io/")

    def __str__(self) -> str:
        return f"{self.file}:{self.kind}:{self.body['metadata'].get('name', 'generated')}"


@dataclass(frozen=True, slots=True)
class Container:
    """A container that a manifest makes Kubernetes start."""

    name: str
    """Where it stands."""
    body: dict[str, Any]
    """What is said of it: image, resources, securityContext and more."""

    def __str__(self) -> str:
        return self.name


def manifests() -> list[Manifest]:
    """Every object in deploy/kubernetes; kustomization.yaml and the plan are no objects."""
    return [
        Manifest(file.name, body)
        for file in sorted(KUBERNETES.glob("*.yaml"))
        if file.name not in ("kustomization.yaml", "plan.yaml")
        for body in yaml.safe_load_all(file.read_text())
    ]


def manifest(kind: str, file: str | None = None) -> Manifest:
    """The one object of a kind, or of a kind in a file."""
    (found,) = [each for each in manifests() if each.kind == kind and file in (None, each.file)]
    return found


def pod_specs(node: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod specification below a node, with the names that lead to it."""
    if isinstance(node, dict):
        if "containers" in node:
            yield where, node
        for key, value in node.items():
            yield from pod_specs(value, f"{where}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from pod_specs(value, f"{where}[{index}]")


def containers() -> list[Container]:
    """Every container of every manifest, KubeRay's autoscaler with them."""
    found = []
    for each in manifests():
        for where, spec in pod_specs(each.body):
            for body in [*spec.get("initContainers", []), *spec["containers"]]:
                found.append(Container(f"{each}{where}:{body['name']}", body))
        if each.body.get("spec", {}).get("enableInTreeAutoscaling"):
            found.append(Container(f"{each}:autoscaler", each.body["spec"].get("autoscalerOptions", {})))
    return found
