"""What is wrong with how a server answered, for tests that send it anything at all."""

from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from unitune.errors import DOMAIN

MISTAKES = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
_CODES = {code.value[0]: code for code in grpc.StatusCode}


async def fault_of(call: Any) -> str:
    """What is wrong with the answer to a call; nothing where it is an answer, or a refusal as every refusal must be."""
    found: list[str] = []
    try:
        if hasattr(call, "__aiter__"):
            async for event in call:
                found += [_fault(_CODES[status.code], status) for status in _failures(event)]
        else:
            await call
    except grpc.aio.AioRpcError as error:
        found.append(_fault(error.code(), rpc_status.from_call(error)))
    return "; ".join(filter(None, found))


def _failures(event: Any) -> list[Any]:
    """The statuses that an event of a stream carries."""
    names = event.DESCRIPTOR.fields_by_name
    if "failed" in names and event.HasField("failed"):
        return [event.failed]
    is_result = "result" in names and event.HasField("result") and event.result.HasField("error")
    return [event.result.error] if is_result else []


def _fault(code: grpc.StatusCode, status: Any) -> str:
    if code in MISTAKES:
        return f"{code.name}: {status and status.message}"
    if status is None:
        return f"{code.name} without details"
    infos = [info for detail in status.details if detail.Unpack(info := error_details_pb2.ErrorInfo())]
    if len(infos) != 1 or infos[0].domain != DOMAIN or not infos[0].reason:
        return f"{code.name} without ErrorInfo"
    return f"details of {status.ByteSize()} bytes" if status.ByteSize() > 4096 else ""
