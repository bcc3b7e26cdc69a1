"""How the client's channel treats each method of the contract."""

import pytest
from google.protobuf.descriptor import MethodDescriptor

from unitune.v1 import edit_pb2, server_pb2, tuning_pb2
from unitune_client.channel import SERVICE_CONFIG

METHODS = [
    method
    for file in (edit_pb2, server_pb2, tuning_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def config_of(method: MethodDescriptor) -> dict[str, object]:
    """The entry that grpc takes for a method: one that names it, else its service's, else none."""
    service = method.containing_service.full_name
    for name in ({"service": service, "method": method.name}, {"service": service}):
        for entry in SERVICE_CONFIG["methodConfig"]:  # type: ignore[attr-defined]
            if name in entry["name"]:
                return dict(entry)
    return {}


@pytest.mark.parametrize("method", [m for m in METHODS if m.server_streaming], ids=lambda method: method.full_name)
def test_a_stream_may_take_as_long_as_it_takes(method: MethodDescriptor) -> None:
    """A tuning alone is longer than the time that a single answer has."""
    assert "timeout" not in config_of(method)


@pytest.mark.parametrize("method", [m for m in METHODS if not m.server_streaming and not m.client_streaming])
def test_a_single_answer_has_a_time(method: MethodDescriptor) -> None:
    """No call hangs for ever on a server that is gone."""
    assert config_of(method)["timeout"] == "15s"
