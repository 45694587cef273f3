"""The program of the keeper's process; see keeper.py.  Standard library only."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator

GRACE = 5.0
STEP = 0.02


def main() -> None:
    """Make the directory, tell its name, wait for the end of the owner, clean up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    directory = tempfile.mkdtemp(prefix="greenconn-brokers-")
    os.mkdir(os.path.join(directory, "groups"))
    with contextlib.suppress(OSError):  # an owner that is gone already is no reason to leave it
        os.write(1, os.fsencode(directory) + b"\n")
    while os.read(0, 1024):
        pass
    end_groups(directory)
    for _ in range(100):
        shutil.rmtree(directory, ignore_errors=True)
        if not os.path.exists(directory):
            break
        time.sleep(STEP)


def end_groups(directory: str) -> None:
    """End each group that noted itself in the directory."""
    closed = os.path.join(directory, "closed")
    try:
        os.rename(os.path.join(directory, "groups"), closed)
    except FileNotFoundError:
        return
    groups = [int(name) for name in os.listdir(closed)]
    for number in (signal.SIGTERM, signal.SIGKILL):
        groups = [group for group in groups if send(group, number) and is_alive(group)]
        wait_for_end(groups)


def wait_for_end(groups: list[int]) -> None:
    """Wait until all groups are gone, or the grace is over."""
    end = time.monotonic() + GRACE
    while time.monotonic() < end and any(map(is_alive, groups)):
        time.sleep(STEP)


def send(group: int, number: int) -> bool:
    """Send a signal to a group; False when it is gone."""
    try:
        os.killpg(group, number)
        if number == signal.SIGTERM:  # one that is stopped could not obey
            os.killpg(group, signal.SIGCONT)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def is_alive(group: int) -> bool:
    """Whether a process of a group lives; one that has ended and waits for its parent does not."""
    if not send(group, 0):
        return False
    if not os.path.exists("/proc/self/stat"):
        return True
    return any(state not in "ZX" for state, _ in _states(group))


def is_stopped(group: int) -> bool:
    """Whether no thread of a group runs any more: after SIGSTOP each runs on for a moment."""
    for _, process in _states(group):
        try:
            tasks = os.listdir(f"{process}/task")
        except OSError:  # it has just ended
            continue
        for task in tasks:
            state = _stat(f"{process}/task/{task}")
            if state and state[0] not in "TtZX":
                return False
    return True


def _states(group: int) -> Iterator[tuple[str, str]]:
    """Yield the state and the directory under /proc of each process of a group."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = _stat(f"/proc/{name}")
            if stat and int(stat[2]) == group:
                yield stat[0], f"/proc/{name}"


def _stat(directory: str) -> list[str]:
    """Return state, parent and group of a process or thread; an empty list when it has ended."""
    try:
        with open(f"{directory}/stat", encoding="ascii", errors="replace") as file:
            # After the program's name, which may hold anything.
            return file.read().rpartition(")")[2].split()[:3]
    except OSError:
        return []


if __name__ == "__main__":
    main()
