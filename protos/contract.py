"""The contract as the compiler describes it."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

from protos.generate import INCLUDES

# The files that clients use; the others are of the services among themselves.
PUBLIC = tuple(f"unitune/v1/{name}.proto" for name in ("edit", "image", "key", "server", "tuning"))
# Messages that travel inside of errors, which no file imports.
ERROR_DETAILS = "google/rpc/error_details.proto"


def described(names: Iterable[str], *flags: str) -> FileDescriptorSet:
    """These files of the contract, as `compiled` gives them."""
    return FileDescriptorSet.FromString(compiled(names, *flags))


def compiled(names: Iterable[str], *flags: str) -> bytes:
    """These files of the contract, as the compiler writes a FileDescriptorSet.

    `flags` are its own: `--include_imports`, `--include_source_info`.

    Raises RuntimeError when the compiler refuses a file; it has printed why.
    """
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "set"
        arguments = ["protoc", *(f"-I{include}" for include in INCLUDES), f"--descriptor_set_out={into}"]
        if protoc.main([*arguments, *flags, *names]) != 0:
            raise RuntimeError("protoc refuses the contract; it has printed why")
        return into.read_bytes()
