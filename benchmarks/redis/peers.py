"""The other side of a measurement on Redis: ``python -m benchmarks.redis.peers ROLE URL ARGUMENT...``.

It writes ``ready`` when it is, and begins when it reads a line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import monotonic_ns, sleep

from benchmarks.peers import PAUSE, wait_go
from benchmarks.redis.envelopes import envelope
from benchmarks.redis.line import Line, command
from benchmarks.stage import BODY


def feed(line: Line, each: str, *queues: str) -> None:
    """Send *each* messages to each queue, in turn."""
    turns = [
        b"".join(command("LPUSH", queue, envelope(BODY, queue)) for queue in queues)
        for _ in range(int(each))
    ]
    wait_go()
    for turn in turns:
        line.send(turn)
        line.lines(len(queues))


def tick(line: Line, count: str, queue: str) -> None:
    """Send *count* messages that say when they left, with pauses."""
    wait_go()
    for _ in range(int(count)):
        sleep(PAUSE)
        line.send(command("LPUSH", queue, envelope({"sent": monotonic_ns()}, queue)))
        line.lines(1)


ROLES: dict[str, Callable[..., None]] = {"feed": feed, "tick": tick}


def main() -> None:
    """Play the role that the command line names."""
    role, url, *arguments = sys.argv[1:]
    ROLES[role](Line(url), *arguments)


if __name__ == "__main__":
    main()
