"""Addresses of this machine, which are trusted more than others, and reached without a proxy."""

import ipaddress
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """True for a host name or address of this machine's loopback."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def by_proxy(url: str) -> bool:
    """True for a URL that the proxies of the environment may stand before; not for loopback."""
    try:
        return not is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return True
