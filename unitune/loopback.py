"""Which addresses are of this machine alone."""

import ipaddress


def is_this_host(host: str) -> bool:
    """Whether a name or IP address is this machine's own, which no other machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_this_machine(address: str) -> bool:
    """Whether nobody else reaches an address, HOST:PORT or unix:PATH."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    return is_this_host(address.rpartition(":")[0].strip("[]"))
