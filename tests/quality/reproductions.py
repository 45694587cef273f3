"""Planted bugs that torture tests find, in processes over a real Redis, which are killed at that place.

``python -m tests.quality.reproductions``

A torture test finds each bug, and tells the history.  Then a process consumes the same messages from a
Redis: it gets SIGKILL at the point of the history, or when its handler has returned; duplicates are
published twice, and reordered messages the other way round.  Another process goes on until nothing is
left.  The bug is reproduced if the check fails then, too.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from typing import Any, Final

import gevent
import redis

from greenconn import App, Listener, add_listener
from greenconn.listeners import DeliverEvent, HandledEvent, PublishEvent
from greenconn.torture import TortureFailure, torture
from tests.planted_handlers import PROGRAMS
from tests.worlds import RedisWorld, World

#: Seconds of a lease, and without a message after which all is done: longer than a dead one's lease.
LEASE: Final = 0.5
QUIET: Final = 1.5
#: Seconds for one process.
SOON: Final = 60.0
#: Faults that can be made with processes.
REAL: Final = frozenset({"kill", "restart", "redeliver", "duplicate", "reorder"})
#: What these bugs need is no death of a process: a time limit, an hour, the end of a greenlet alone.
OTHER: Final = frozenset(
    {
        "copies_known_too_shortly",
        "end_is_swallowed",
        "late_overwrites",
        "retry_after_partial_effect",
    }
)


class Killer(Listener):
    """Kills the process at a point of a call.

    Arguments:
        call: its number.
        point: its number within the call; 0: when the handler has returned.
    """

    def __init__(self, call: int, point: int) -> None:
        self._at = call, point
        self._calls = self._points = 0
        self.last_at = 0

    def on_deliver(self, event: DeliverEvent) -> None:
        """Count the calls."""
        self._calls += 1
        self._points = 0
        self.last_at += 1

    def on_publish(self, event: PublishEvent) -> None:
        """Count the points: a handler publishes."""
        if self._calls:
            self.at_point()

    def on_handled(self, event: HandledEvent) -> None:
        """Kill before the ack."""
        if self._at == (self._calls, 0):
            os.kill(os.getpid(), signal.SIGKILL)

    def at_point(self) -> None:
        """Count the points: an operation has had its effect."""
        self._points += 1
        if self._at == (self._calls, self._points):
            os.kill(os.getpid(), signal.SIGKILL)


def story_of(name: str) -> tuple[str, list[tuple[str, int, int]]]:
    """Return the history with which a torture test finds a bug, and its faults."""
    app, world = App(), World()
    program = PROGRAMS[name](app, world)
    run = torture(app, seed=1, faults=program.faults, reset=world.clear, forget=program.forget)
    for queue, body in program.messages:
        run.publish(queue, body)
    run.check(lambda: program.check(world))
    try:
        run.explore()
    except TortureFailure as exc:
        faults = [(each.kind, each.number, each.point) for each in exc.faults]
        return exc.history, faults
    raise AssertionError(f"{name} was not found")


def reproduce(name: str, url: str) -> bool:
    """Return whether the bug is there in killed processes, too.

    Raises:
        RuntimeError: a process ended in another way than it was to.
    """
    _, faults = story_of(name)
    client = redis.Redis.from_url(url)
    client.flushdb()
    app, world = App(url), RedisWorld(client, "world-")
    program = PROGRAMS[name](app, world)
    messages = list(program.messages)
    call, point = -1, -1
    for kind, number, at in faults:
        if kind == "duplicate":
            messages.insert(number, messages[number - 1])
        elif kind == "reorder":
            messages[number - 1 : number + 1] = reversed(messages[number - 1 : number + 1])
        else:
            call, point = number, 0 if kind == "redeliver" else at
    with _connected(app):
        for queue, body in messages:
            app.publish(queue, body, declare=True)
    if call > 0 and _run(name, url, call, point) != -signal.SIGKILL:
        raise RuntimeError(f"{name}: its process did not come to point {point} of call {call}")
    if code := _run(name, url, -1, -1):
        raise RuntimeError(f"{name}: the second process ended with {code}")
    return program.check(world) is False


def _connected(app: App) -> Any:
    assert app.connection is not None
    return app.connection


def _run(name: str, url: str, call: int, point: int) -> int:
    """Run a process that consumes until nothing is left, or is killed, and return its exit code."""
    command = [sys.executable, "-m", "tests.quality.reproductions", "--url", url, name]
    return subprocess.run(
        [*command, "--kill", json.dumps([call, point])], timeout=SOON, check=False
    ).returncode


def consume(name: str, url: str, call: int, point: int) -> None:
    """Consume until nothing has come for a while."""
    killer = Killer(call, point)
    add_listener(killer)
    app = App(url, transport_options={"lease": LEASE})
    world = RedisWorld(redis.Redis.from_url(url), "world-", killer.at_point)
    PROGRAMS[name](app, world)
    app.start()
    app.wait_ready(SOON)
    before = -1
    while killer.last_at != before:
        before = killer.last_at
        gevent.sleep(QUIET)
    app.stop(SOON)


def main(arguments: Iterable[str] | None = None) -> int:
    """Reproduce the bugs that are named, or all that can be."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.quality.reproductions", description=__doc__
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of bugs")
    parser.add_argument("--url", help="of a Redis whose database is emptied")
    parser.add_argument("--kill", help=argparse.SUPPRESS)
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.kill:
        consume(options.names[0], options.url, *json.loads(options.kill))
        return 0
    names = options.names or [each for each in PROGRAMS if each not in OTHER]
    done = 0
    for name in names:
        is_there = reproduce(name, options.url)
        done += is_there
        print(
            f"{name:26}{story_of(name)[0]:24}{'reproduced' if is_there else 'not seen'}", flush=True
        )
    print(f"{done} of {len(names)}")
    return 0 if done == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
