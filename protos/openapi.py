"""Write docs/openapi.json: the public calls as the edge (k8s/edge) offers them, JSON over HTTP, in OpenAPI 3.0.

    python -m protos.openapi          # write it
    python -m protos.openapi --check  # say whether it is fresh

A call is here if it has a `google.api.http` rule. Names are those of the contract, as the edge writes them; it reads
lowerCamelCase, too. int64 is a text in JSON, and bytes are base64.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from google.api import annotations_pb2, field_behavior_pb2, http_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor

from protos.contract import PUBLIC, described
from protos.generated_file import ROOT, write
from unitune import __version__
from unitune.options import limits_of
from unitune.v1 import edit_pb2, image_pb2, key_pb2, server_pb2, tuning_pb2

FILE = ROOT / "docs" / "openapi.json"
MODULES = (edit_pb2, image_pb2, key_pb2, server_pb2, tuning_pb2)
PACKAGE = "unitune.v1."
ABOUT = """What the edge of a UniTune server offers to whom gRPC does not suit; docs/http.md shows it with curl.

A call that streams answers with one JSON object a line, each as soon as it happens. Every refusal is a
google.rpc.Status, whose google.rpc.ErrorInfo says in `reason` what is wrong. int64 is a text, and bytes are base64."""

Json = dict[str, Any]
F = FieldDescriptor
SCALARS: Mapping[int, Json] = {
    F.TYPE_BOOL: {"type": "boolean"},
    F.TYPE_BYTES: {"type": "string", "format": "byte"},
    F.TYPE_DOUBLE: {"type": "number", "format": "double"},
    F.TYPE_INT32: {"type": "integer", "format": "int32"},
    F.TYPE_INT64: {"type": "string", "format": "int64"},
    F.TYPE_STRING: {"type": "string"},
    F.TYPE_UINT64: {"type": "string", "format": "uint64"},
}
# Messages that JSON writes in a way of their own.
WELL_KNOWN: Mapping[str, Json] = {
    "google.protobuf.Any": {
        "type": "object",
        "properties": {"@type": {"type": "string"}},
        "required": ["@type"],
        "additionalProperties": True,
    },
    "google.protobuf.Empty": {"type": "object"},
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
}
_VARIABLE = re.compile(r"\{([\w.]+)=([^}]+)\}")


def comments() -> dict[str, str]:
    """The comment of everything in the public contract, by its full name."""
    found: dict[str, str] = {}
    # Of a kind of thing in a file, message or service: its number there, and that of what is in it.
    inner = {"message_type": 4, "enum_type": 5, "service": 6}
    in_message = {"field": 2, "nested_type": 3, "enum_type": 4}

    def note(thing: Any, name: str, path: tuple[int, ...], numbers: Mapping[str, int]) -> None:
        for kind, number in numbers.items():
            for index, one in enumerate(getattr(thing, kind, ())):
                at, full = (*path, number, index), f"{name}.{one.name}"
                found[full] = "\n".join(line.strip() for line in told.get(at, "").splitlines()).strip()
                deeper = in_message if kind in ("message_type", "nested_type") else {"value": 2, "method": 2}
                note(one, full, at, deeper)

    for file in described(PUBLIC, "--include_source_info").file:
        told = {tuple(location.path): location.leading_comments for location in file.source_code_info.location}
        note(file, file.package, (), inner)
    return found


class Document:
    """The document, filled call by call."""

    def __init__(self, comments: Mapping[str, str]) -> None:
        self._comments = comments
        self.paths: dict[str, Json] = {}
        self.schemas: dict[str, Json] = {}

    def add(self, method: MethodDescriptor, rule: http_pb2.HttpRule, suffix: str = "") -> None:
        """Add a call by one of its rules; `suffix` makes the name of a further one its own."""
        verb = str(rule.WhichOneof("pattern"))
        template = getattr(rule, verb)
        bound = {name for name, _ in _VARIABLE.findall(template)}
        path = _VARIABLE.sub(lambda found: "/".join(_segments(found[2])), template)
        names = re.findall(r"\{(\w+)\}", path)
        parameters: list[Json] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
        call: Json = {
            "operationId": f"{method.name}{suffix}",
            "tags": [method.containing_service.name],
            "description": self._comments.get(method.full_name, ""),
            "parameters": parameters,
        }
        if rule.body:
            call["requestBody"] = self._body(method.input_type, rule.body, bound)
        if rule.body != "*":
            parameters += self._query(method.input_type, {*bound, rule.body})
        told = "One object a line, each as soon as it happens." if method.server_streaming else "The answer."
        content = {"application/json": {"schema": self._message(method.output_type)}}
        call["responses"] = {
            "200": {"description": told, "content": content},
            "default": {"$ref": "#/components/responses/Refusal"},
        }
        self.paths.setdefault(path, {})[verb] = call

    def document(self) -> Json:
        """All of it."""
        refusal = {
            "description": "A refusal.",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/google.rpc.Status"}}},
        }
        return {
            "openapi": "3.0.3",
            "info": {"title": "UniTune", "version": __version__, "description": ABOUT},
            "servers": [{"url": "https://localhost:8443", "description": "Yours is elsewhere."}],
            "security": [{"key": []}],
            "paths": dict(sorted(self.paths.items())),
            "components": {
                "securitySchemes": {
                    "key": {"type": "http", "scheme": "bearer", "description": "An API key or a token."}
                },
                "responses": {"Refusal": refusal},
                "schemas": dict(sorted(self.schemas.items())),
            },
        }

    def _body(self, request: Descriptor, body: str, bound: set[str]) -> Json:
        if body == "*":
            schema = self._message(request, without=bound)
            is_required = bool(self.schemas[_name(request)].get("required"))
            return {"required": is_required, "content": {"application/json": {"schema": schema}}}
        field = request.fields_by_name[body]
        assert field.message_type is not None
        if field.message_type.full_name == "google.api.HttpBody":
            file = {"schema": {"type": "string", "format": "binary"}}
            return {"required": True, "content": {"application/octet-stream": file}}
        return {"required": True, "content": {"application/json": {"schema": self._message(field.message_type)}}}

    def _query(self, request: Descriptor, without: set[str], prefix: str = "") -> Iterator[Json]:
        """A parameter for each field that is not in path or body; fields of messages by their place."""
        for field in request.fields:
            place = f"{prefix}{field.name}"
            if place in without:
                continue
            if field.message_type is not None and field.message_type.full_name not in WELL_KNOWN:
                yield from self._query(field.message_type, without, f"{place}.")
            elif field.type != F.TYPE_BYTES:
                yield {
                    "name": place,
                    "in": "query",
                    "description": self._comments.get(field.full_name, ""),
                    "schema": self._value(field),
                }

    def _message(self, descriptor: Descriptor, without: Iterable[str] = ()) -> Json:
        """A reference to the schema of a message, which it makes if it is not there yet."""
        if descriptor.full_name in WELL_KNOWN:
            return dict(WELL_KNOWN[descriptor.full_name])
        name = _name(descriptor)
        if name not in self.schemas:
            self.schemas[name] = schema = {
                "type": "object",
                "description": self._comments.get(descriptor.full_name, ""),
            }
            fields = [field for field in descriptor.fields if field.name not in without]
            if needed := [field.name for field in fields if field_behavior_pb2.REQUIRED in _behavior(field)]:
                schema["required"] = needed
            schema["properties"] = {field.name: self._field(field) for field in fields}
        return {"$ref": f"#/components/schemas/{name}"}

    def _enum(self, descriptor: EnumDescriptor) -> Json:
        name = _name(descriptor)
        if name not in self.schemas:
            told = [self._comments.get(f"{descriptor.full_name}.{value.name}", "") for value in descriptor.values]
            description = "\n".join(
                [self._comments.get(descriptor.full_name, ""), *(f"- {one}" for one in told if one)]
            )
            values = [value.name for value in descriptor.values]
            self.schemas[name] = {"type": "string", "enum": values, "description": description}
        return {"$ref": f"#/components/schemas/{name}"}

    def _field(self, field: FieldDescriptor) -> Json:
        limits = limits_of(field)
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            schema: Json = {"type": "object", "additionalProperties": self._value(kind.fields_by_name["value"])}
        elif field.is_repeated:
            schema = {"type": "array", "items": self._value(field)}
            if limits.max_items:
                schema["maxItems"] = limits.max_items
        else:
            schema = self._value(field)
        if "$ref" in schema:  # beside which nothing else is read
            schema = {"allOf": [schema]}
        description = self._comments.get(field.full_name, "")
        oneof = field.containing_oneof
        if oneof is not None and len(oneof.fields) > 1:
            description += f"\nAt most one of {', '.join(one.name for one in oneof.fields)} is set."
        schema["description"] = description.strip()
        if field_behavior_pb2.OUTPUT_ONLY in _behavior(field):
            schema["readOnly"] = True
        return schema

    def _value(self, field: FieldDescriptor) -> Json:
        if field.message_type is not None:
            return self._message(field.message_type)
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        schema, limits = dict(SCALARS[field.type]), limits_of(field)
        if schema["type"] in ("integer", "number"):
            for end, key in (("gte", "minimum"), ("gt", "minimum"), ("lte", "maximum"), ("lt", "maximum")):
                if limits.HasField(end):
                    value = getattr(limits, end)
                    schema[key] = int(value) if value == int(value) else value
                    if end in ("gt", "lt"):
                        schema[f"exclusive{key.capitalize()}"] = True
        elif field.type == F.TYPE_STRING:
            schema |= {"minLength": limits.min_len} if limits.min_len else {}
            schema |= {"maxLength": limits.max_len} if limits.max_len else {}
        return schema


def _segments(pattern: str) -> Iterator[str]:
    """The segments of `tenants/*/tunings/*`, each * by the name of what it names: `{tenant}`, `{tuning}`."""
    before = ""
    for segment in pattern.split("/"):
        yield f"{{{before.removesuffix('s')}}}" if segment == "*" else segment
        before = segment


def _name(descriptor: Descriptor | EnumDescriptor) -> str:
    return descriptor.full_name.removeprefix(PACKAGE)


def _behavior(field: FieldDescriptor) -> Any:
    return field.GetOptions().Extensions[field_behavior_pb2.field_behavior]


def openapi() -> str:
    """The document as JSON."""
    document = Document(comments())
    for module in MODULES:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                rule = method.GetOptions().Extensions[annotations_pb2.http]
                for number, one in enumerate([rule, *rule.additional_bindings], start=1):
                    if one.WhichOneof("pattern"):
                        document.add(method, one, "" if number == 1 else str(number))
    return json.dumps(document.document(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(write(FILE, openapi()))
