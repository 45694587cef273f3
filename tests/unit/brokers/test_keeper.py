"""The keeper: nothing outlives its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers._keep import is_alive
from tests.brokers.keeper import Keeper, wait_for_end

pytestmark = pytest.mark.programs

ROOT = Path(__file__).resolve().parent.parent.parent.parent
OWNER = """
import os, sys, time
from tests.brokers.keeper import Keeper
keeper = Keeper()
child = keeper.run(["sh", "-c", "sleep 60 & sleep 60"])
stopped = keeper.run(["sleep", "60"])
os.kill(stopped.pid, 19)
print(keeper.directory, child.pid, stopped.pid, flush=True)
time.sleep(60)
"""
TIMEOUT = 60.0


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    """A keeper of this process."""
    with Keeper() as keeper:
        yield keeper


def wait_until_gone(directory: Path, *groups: int) -> None:
    """Wait until neither the directory nor the groups are there."""
    end = time.monotonic() + TIMEOUT
    while directory.exists() or any(map(is_alive, groups)):
        assert time.monotonic() < end, (directory, groups)
        time.sleep(0.02)


def test_close_ends_all_and_removes_the_directory() -> None:
    with Keeper() as keeper:
        child = keeper.run(["sleep", "60"])
        (keeper.directory / "data").mkdir()
        assert is_alive(child.pid)
    assert child.poll() == -signal.SIGTERM
    assert not keeper.directory.exists()


def test_a_killed_owner_leaves_nothing() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        directory, *groups = owner.stdout.readline().split()
        assert all(is_alive(int(group)) for group in groups)
        owner.send_signal(signal.SIGKILL)
    wait_until_gone(Path(directory), *map(int, groups))


def test_end_asks_first(keeper: Keeper) -> None:
    output = keeper.directory / "output"
    child = keeper.run(
        ["sh", "-c", "trap 'echo asked; exit 0' TERM; echo ready; while :; do sleep 0.05; done"],
        output=output,
    )
    while not output.read_text():
        time.sleep(0.01)
    keeper.end(child)
    assert child.returncode == 0
    assert output.read_text().endswith("asked\n")


def test_end_without_grace_kills(keeper: Keeper) -> None:
    child = keeper.run(["sleep", "60"])
    keeper.end(child, grace=0)
    assert child.returncode == -signal.SIGKILL
    keeper.end(child)  # once more does nothing


def test_the_environment_is_what_was_given(keeper: Keeper) -> None:
    output = keeper.directory / "output"
    child = keeper.run(["/usr/bin/env"], env={"ONLY": "this"}, output=output)
    assert wait_for_end(child, TIMEOUT)
    assert "ONLY=this" in output.read_text()
    assert "HOME=" not in output.read_text()


def test_a_fork_of_the_owner_ends_nothing(keeper: Keeper) -> None:
    child = keeper.run(["sleep", "60"])
    fork = os.fork()
    if not fork:
        keeper.close()
        os._exit(0)
    os.waitpid(fork, 0)
    assert child.poll() is None
    assert keeper.directory.is_dir()
