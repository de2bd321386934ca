"""Names of hosts as requests write them (RFC 9110, 7.2), and which of them are this emulator's."""

import ipaddress


def host_of(header: str) -> str:
    """The host in a Host field, in lower case: without its port, its brackets, and the dot at its end."""
    text = header.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].removesuffix(".")


def is_address(host: str) -> bool:
    """Whether it is an address, which no name server can lend to a page in a browser."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def own_names(host: str) -> frozenset[str]:
    """The names of an emulator that listens on `host`."""
    return frozenset({"localhost", host_of(host)} - {""})
