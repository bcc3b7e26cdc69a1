"""Clients and forks: gRPC's threads are not in the child, so a client of the parent does not work there.

A new client does not work there either, if the parent had a channel at the fork: a call would hang, or end the child
by SIGSEGV. Both are refused here.
"""

import os
from weakref import WeakSet

import grpc

# gRPC's state goes with its last channel, so a channel counts until it is collected, not only until it is closed.
_channels: WeakSet[grpc.aio.Channel] = WeakSet()
_is_spoiled = False  # this process was forked while a channel was open

HOW = (
    "close every client before the fork and make new ones after it, or start the child by spawn "
    '(multiprocessing.get_context("spawn"))'
)


def opened(channel: grpc.aio.Channel) -> grpc.aio.Channel:
    """The channel, remembered for as long as it is there."""
    _channels.add(channel)
    return channel


def refuse_spoiled() -> None:
    """Raise RuntimeError in a process that was forked while a client was open."""
    if _is_spoiled:
        raise RuntimeError(f"this process was forked while a client was open, so no client can work in it: {HOW}")


def refuse_foreign(made_in: int) -> None:
    """Raise RuntimeError unless this is the process, by its id, that a client was made in."""
    if os.getpid() != made_in:
        what = "this client was made before fork; make a new one in the child process"
        raise RuntimeError(f"{what}, which needs that none was open at the fork: {HOW}" if _is_spoiled else what)


def _after_in_child() -> None:
    global _is_spoiled
    _is_spoiled = _is_spoiled or bool(_channels)


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_in_child)
