"""Addresses of this machine, which are trusted more than others, and reached without a proxy."""

import ipaddress
import os
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


def spare_loopback() -> None:
    """Except loopback from the environment's proxies, for MLflow, stores and child processes."""
    excepted = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if excepted.strip() != "*":
        hosts = dict.fromkeys(filter(None, (*excepted.split(","), "localhost", "127.0.0.1", "::1")))
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)
