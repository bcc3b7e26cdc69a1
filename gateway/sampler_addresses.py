"""The addresses of samplers: UNITUNE_SAMPLER names some, and a name may stand for several."""

import asyncio
import ipaddress
import re
import socket

_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:/\s]+):([0-9]{1,5})")
_LOCAL_SOCKET = "unix:"


def named(text: str) -> list[str]:
    """What is named in HOST:PORT, or several of them separated by commas. Raises ValueError for what is none."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        found = _HOST_PORT.fullmatch(name)
        if not name.startswith(_LOCAL_SOCKET) and not (found and 0 < int(found[2]) < 1 << 16):
            raise ValueError(f"{name!r} is no HOST:PORT: name one sampler, or several separated by commas")
    return names


async def resolved(name: str) -> list[str]:
    """All addresses that a name stands for. Of a name with addresses of IPv4 and IPv6 those of IPv4: both lead to the
    same samplers. Raises OSError for a name without any."""
    host, _, port = name.rpartition(":")
    if name.startswith(_LOCAL_SOCKET) or _is_address(host.strip("[]")):
        return [name]
    found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    of_version_4 = {address[0] for family, *_, address in found if family is socket.AF_INET}
    of_version_6 = {f"[{address[0]}]" for family, *_, address in found if family is socket.AF_INET6}
    return sorted(f"{address}:{port}" for address in of_version_4 or of_version_6)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
