"""The program of the keeper's process; see keeper.py.  Standard library only."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time

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
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as file:
                # After the program's name, which may hold anything: state, parent, group.
                state, _, its_group = file.read().rpartition(")")[2].split()[:3]
        except OSError:  # it has just ended
            continue
        if int(its_group) == group and state not in "ZX":
            return True
    return False


if __name__ == "__main__":
    main()
