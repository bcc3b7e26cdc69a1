"""Makes the files of tests/k8s/schemas: what an object of another project's kind may have in it, for strict checks.

    python -m tests.k8s.crd_schemas CRD.yaml ...

reads definitions as their projects publish them (schemas/README.md says where), and writes a file for each kind. It has
the version that is stored, without descriptions, status and rules that only a cluster can check. An unknown field is
refused, as `kubectl apply --validate=strict` does.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "schemas"
LEFT_OUT = {"description", "default", "x-kubernetes-validations"}
# A pod's own fields in another kind's, which nothing here uses; they are most of their files.
PODS = {"affinity", "podTemplate", "topologySpreadConstraints", "ephemeralVolumeSource", "projectedVolumeTemplate"}


def schema_of(definition: dict[str, Any]) -> dict[str, Any]:
    """The schema of a CustomResourceDefinition's stored version."""
    version = next(one for one in definition["spec"]["versions"] if one["storage"])
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"].pop("status", None)
    schema["properties"]["metadata"] = {"type": "object"}
    api_version = f"{definition['spec']['group']}/{version['name']}"
    schema["properties"] |= {
        "apiVersion": {"const": api_version},
        "kind": {"const": definition["spec"]["names"]["kind"]},
    }
    return schema


def strict(schema: Any) -> Any:
    """The same without what is left out, and with objects that have no other fields than those that are named."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(value) for name, value in schema.items() if name not in LEFT_OUT or is_names(schema)}
    if isinstance(properties := schema.get("properties"), dict):
        made["properties"] = {name: strict(value) for name, value in properties.items() if name not in PODS}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
            made["additionalProperties"] = False
    return made


def is_names(schema: dict[str, Any]) -> bool:
    """Whether the keys are names of fields, not words of a schema."""
    return bool(schema) and all(isinstance(value, dict) for value in schema.values())


def main() -> int:
    """The program; its exit code."""
    for path in sys.argv[1:]:
        for definition in yaml.safe_load_all(Path(path).read_text()):
            schema = schema_of(definition)
            kind = schema["properties"]["kind"]["const"]
            (FOLDER / f"{kind}.json").write_text(json.dumps(schema, separators=(",", ":"), sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
