"""Proxies of the environment never stand before this machine's own addresses."""

import pytest
from requests.utils import should_bypass_proxies

from dynamics.core.loopback import by_proxy, spare_loopback


@pytest.mark.parametrize("excepted", ["", "lab.example, 10.0.0.1", "*"])
def test_libraries_reach_loopback_directly_and_the_users_exceptions_stay(monkeypatch, excepted):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", excepted)
    monkeypatch.delenv("no_proxy", raising=False)
    spare_loopback()
    for host in ("localhost", "127.0.0.1"):
        assert should_bypass_proxies(f"http://{host}:5000", no_proxy=None)
    assert should_bypass_proxies("http://lab.example", no_proxy=None) == bool(excepted)
    assert should_bypass_proxies("http://far.example", no_proxy=None) == (excepted == "*")


def test_only_loopback_is_spared_by_our_own_clients():
    assert not any(map(by_proxy, ("http://localhost:1", "http://127.0.0.9", "http://[::1]:8000")))
    assert by_proxy("http://lab.example")
