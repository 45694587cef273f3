"""Free ports."""

from __future__ import annotations

import socket

import pytest

from tests.brokers import ports
from tests.brokers.ports import free_ports


def test_they_are_different_and_in_the_range() -> None:
    found = free_ports(20)
    assert len(set(found)) == 20
    assert all(20000 <= port < 32000 for port in found)


def test_one_that_is_taken_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    (taken, free) = free_ports(2)
    monkeypatch.setattr(ports, "RANGE", range(taken, taken + 1))
    monkeypatch.setattr(ports, "ATTEMPTS", 1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", taken))
        listener.listen()
        with pytest.raises(OSError, match="no 1 free ports"):
            free_ports(1)
    monkeypatch.setattr(ports, "RANGE", range(free, free + 1))
    assert free_ports(1) == [free]
