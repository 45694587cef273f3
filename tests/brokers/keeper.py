"""A temporary directory with processes in it, none of which outlives the process that made it.

The keeper is a process of its own, which makes the directory and holds the reading end of a pipe.
Only its owner holds the writing end, so however the owner ends, SIGKILL included, the keeper reads
end of file: then it ends each process group that is noted in the directory, and removes it.

A group notes itself, by a file named like its id, before its program runs.  The keeper closes the
list by renaming the folder, so that a group that comes later cannot begin.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from gevent import sleep

from tests.brokers._keep import is_stopped, send

__all__ = ["Keeper", "is_stopped", "send", "wait_for_end"]

#: Makes the note, then becomes the program.
NOTE_AND_RUN = ': > "$1/$$" && shift && exec "$@"'
#: Seconds that a group has after SIGTERM before it gets SIGKILL.
GRACE = 5.0
STEP = 0.02


class Keeper:
    """Owns a temporary directory and the process groups that were started for it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            # Isolated and without site: only the standard library, and a quick start.
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("_keep.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._pipe = self._process.stdin
        with self._process.stdout as answer:
            self.directory = Path(os.fsdecode(answer.readline().rstrip(b"\n")))
        self._owner = os.getpid()
        self._children: list[subprocess.Popen[bytes]] = []

    def run(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        output: Path | int | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start *command* in a session of its own, which ends with the owner.

        Arguments:
            env: the whole environment; None for the owner's.
            output: a file to append both outputs to, or a descriptor (``subprocess.PIPE``).
        """
        note = ["/bin/sh", "-c", NOTE_AND_RUN, "sh", str(self.directory / "groups")]
        sink = open(output, "ab") if isinstance(output, Path) else output  # noqa: SIM115
        try:
            child = subprocess.Popen(
                [*note, *map(str, command)],
                env=None if env is None else dict(env),
                cwd=cwd or self.directory,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            if not isinstance(sink, int) and sink is not None:
                sink.close()
        self._children.append(child)
        # A second time, as the child may be stopped before its turn comes.
        (self.directory / "groups" / str(child.pid)).touch()
        return child

    def end(self, child: subprocess.Popen[bytes], grace: float = GRACE) -> None:
        """End the group of *child*: SIGTERM, and SIGKILL after *grace* seconds.  May switch.

        Arguments:
            grace: 0 sends SIGKILL at once.
        """
        if grace and send(child.pid, signal.SIGTERM):
            wait_for_end(child, grace)
        send(child.pid, signal.SIGKILL)
        wait_for_end(child, GRACE)
        (self.directory / "groups" / str(child.pid)).unlink(missing_ok=True)
        if child in self._children:
            self._children.remove(child)

    def close(self) -> None:
        """End all groups and remove the directory.  May switch."""
        if os.getpid() != self._owner:  # a fork of the owner owns nothing
            return
        self._pipe.close()
        for child in [self._process, *self._children]:
            wait_for_end(child, 2 * GRACE)
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def wait_for_end(child: subprocess.Popen[bytes], timeout: float) -> bool:
    """Whether *child* ended within *timeout* seconds.  May switch.

    Looks again and again because ``Popen.wait`` of an unpatched process would block the hub.
    """
    end = time.monotonic() + timeout
    while child.poll() is None:
        if time.monotonic() >= end:
            return False
        sleep(STEP)
    return True
