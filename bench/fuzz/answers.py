"""What is wrong with how a server answered, for those who send it anything at all."""

import asyncio
from contextlib import suppress
from typing import Any, NamedTuple, cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from unitune.errors import DOMAIN

MISTAKES = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
NO_END = "no end yet"  # the caller did not wait longer
ENDED_WHILE_SENT = "ended while its request was sent"
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_TOO_LARGE = "larger than max"  # grpc's own words, without details
_OF_THE_SENDER = "Internal error from Core"  # of the caller's own grpc, when a call ends while its request is sent
_EVENTS = 1000  # of one stream that are read


class Answer(NamedTuple):
    """How a call was answered, by its code, and what is wrong with that; empty where nothing is."""

    code: str
    fault: str = ""


async def fault_of(call: Any) -> str:
    """What is wrong with the answer to a call; nothing where it is an answer, or a refusal as every refusal must be."""
    return (await answer_of(call)).fault


async def answer_of(call: Any, events: int = _EVENTS) -> Answer:
    """How a call is answered. Of a stream so many events are read at most."""
    faults: list[str] = []
    code = grpc.StatusCode.OK
    try:
        if hasattr(call, "__aiter__"):
            async for event in call:
                for status in _failures(event):
                    code = _CODES[status.code]
                    faults.append(_fault(code, status))
                events -= 1
                if events == 0:
                    break
        else:
            await call
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not error.trailing_metadata():
            return Answer(NO_END)
        if error.code() is grpc.StatusCode.INTERNAL and error.details() == _OF_THE_SENDER:
            return Answer(ENDED_WHILE_SENT)
        code = error.code()
        if not (code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in (error.details() or "")):
            faults.append(_fault(code, rpc_status.from_call(cast(grpc.Call, error)), error.details()))
    finally:
        if hasattr(call, "cancel"):
            call.cancel()
            with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await call.code()
    return Answer(code.name, "; ".join(filter(None, faults)))


def _failures(event: Any) -> list[Any]:
    """The statuses that an event of a stream carries."""
    names = event.DESCRIPTOR.fields_by_name
    if "failed" in names and event.HasField("failed"):
        return [event.failed]
    is_result = "result" in names and event.HasField("result") and event.result.HasField("error")
    return [event.result.error] if is_result else []


def _fault(code: grpc.StatusCode, status: Any, message: str | None = None) -> str:
    """`message` is grpc's, for what comes without details."""
    if code in MISTAKES:
        return f"{code.name}: {status.message if status else message}"
    if status is None:
        return f"{code.name} without details: {message}"
    infos = [info for detail in status.details if detail.Unpack(info := error_details_pb2.ErrorInfo())]
    if len(infos) != 1 or infos[0].domain != DOMAIN or not infos[0].reason:
        return f"{code.name} without ErrorInfo"
    return f"details of {status.ByteSize()} bytes" if status.ByteSize() > 4096 else ""
