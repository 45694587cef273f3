"""Free ports."""

from __future__ import annotations

import socket
from itertools import islice

import pytest

from tests.brokers import ports
from tests.brokers.ports import free_ports, some_ports


def test_they_are_different_and_in_the_range() -> None:
    found = free_ports(10) + free_ports(10)
    assert len(set(found)) == 20
    assert all(20000 <= port < 26000 for port in found)


def test_one_that_is_taken_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    (taken, free) = free_ports(2)
    monkeypatch.setattr(ports, "BROKERS", range(taken, taken + 1))
    monkeypatch.setattr(ports, "_given", set())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", taken))
        listener.listen()
        with pytest.raises(OSError, match="no 1 free ports"):
            free_ports(1)
    monkeypatch.setattr(ports, "BROKERS", range(free, free + 1))
    assert free_ports(1) == [free]


def test_those_of_others_are_apart() -> None:
    found = set(islice(some_ports(), 100))
    assert len(found) == 100
    assert all(26000 <= port < 32000 for port in found)
