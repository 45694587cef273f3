"""Free ports."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest

from tests.brokers import ports
from tests.brokers.ports import BLOCK, free_ports, some_ports
from tests.forked import holds_in_child

ROOT = Path(__file__).resolve().parents[3]


def test_they_are_different_and_in_the_range() -> None:
    found = free_ports(10) + free_ports(10)
    assert len(set(found)) == 20
    assert all(20000 <= port < 26000 for port in found)


class Fixed:
    """Blocks that are known."""

    def __init__(self, *ports: int) -> None:
        self._ports = ports

    def ports(self) -> Iterator[int]:
        """What was given."""
        return iter(self._ports)


def test_one_that_is_taken_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    (taken, free) = free_ports(2)
    monkeypatch.setattr(ports, "_given", set())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", taken))
        listener.listen()
        monkeypatch.setattr(ports, "_blocks", Fixed(taken))
        with pytest.raises(OSError, match="no 1 free ports"):
            free_ports(1)
    monkeypatch.setattr(ports, "_blocks", Fixed(taken, free, free))
    monkeypatch.setattr(ports, "_given", {taken})
    assert free_ports(1) == [free]


PROGRAM = """
import sys
from tests.brokers.ports import free_ports
print(*free_ports(70), flush=True)
sys.stdin.read()
"""


@contextmanager
def others() -> Iterator[set[int]]:
    """The ports that another process has chosen, while it lives."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield {int(port) for port in process.stdout.readline().split()}
        process.kill()


def test_processes_choose_from_different_blocks() -> None:
    with others() as first, others() as second:
        assert len(first) == len(second) == 70
        assert not {port // BLOCK for port in first} & {port // BLOCK for port in second}


def test_a_fork_takes_blocks_of_its_own() -> None:
    mine = {port // BLOCK for port in free_ports(2 * BLOCK)}
    assert holds_in_child(lambda: free_ports(1)[0] // BLOCK not in mine)


def test_those_of_others_are_apart() -> None:
    found = set(islice(some_ports(), 100))
    assert len(found) == 100
    assert all(26000 <= port < 32000 for port in found)
