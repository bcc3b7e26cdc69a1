"""What a cluster takes: the schemas of Kubernetes, from the package kubernetes-validate, and those of other projects'
kinds, from the folder beside this file."""

import json
from functools import cache
from typing import Any

import jsonschema
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

from tests.k8s.crd_schemas import FOLDER

VERSION = "1.37.0"
STRICT = f"kubernetes-json-schema/v{VERSION}-local-strict"


@cache
def _definitions() -> Resource:
    return Resource.from_contents(schema_contents(f"{STRICT}/_definitions.json", VERSION))


@cache
def _validator(kind: str, api_version: str) -> Any:
    group, _, version = api_version.rpartition("/")
    if (FOLDER / f"{kind}.json").exists():
        return jsonschema.Draft202012Validator(json.loads((FOLDER / f"{kind}.json").read_text()))
    name = "-".join(part for part in (kind.lower(), group.partition(".")[0], version) if part)
    try:
        schema = schema_contents(f"{STRICT}/{name}.json", VERSION)
    except FileNotFoundError as error:
        raise LookupError(f"no schema of {api_version} {kind}: see tests/k8s/schemas/README.md") from error
    registry = Resource.from_contents(schema) @ (_definitions() @ Registry())
    return jsonschema.Draft202012Validator(schema, registry=registry)


def check(found: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError for an object that a cluster would refuse or of which it would drop a field."""
    _validator(found["kind"], found["apiVersion"]).validate(found)
