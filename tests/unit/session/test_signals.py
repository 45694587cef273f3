"""Signals whose handlers raise anywhere in a change of a session: it can be used afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import gevent
import pytest
from greenlet import getcurrent

from greenconn.connection import Connection
from greenconn.green.deadline import Deadline
from greenconn.green.supervisor import spawn
from greenconn.session.session import SessionState
from tests.fix_interrupts import Signal, SignalAt, signals

WITHIN = ("/greenconn/session/", "/greenconn/green/supervisor", "/greenconn/green/slot")
SOON = 20.0


class Member:
    """What is recovered on each link."""

    def recover(self, deadline: Deadline) -> None:
        """Do nothing."""


@pytest.fixture
def connections() -> Iterator[Callable[[], Connection]]:
    made: list[Connection] = []

    def make() -> Connection:
        made.append(Connection("memory://", connect_timeout=0.5))
        return made[-1]

    yield make
    for each in made:
        each.close()


def connected(connection: Connection) -> None:
    """Connect."""
    connection.connect()


def closed(connection: Connection) -> None:
    """Close it, and use it again."""
    connection.close()
    connection.default_channel.close()


def lost(connection: Connection) -> None:
    """Lose the link, and use another."""
    link = connection.session.life.link
    on_lost, link.on_lost = link.on_lost, None
    link.end(ConnectionResetError("cut"))
    on_lost(link.lost)
    connection.default_channel.close()


def check(connection: Connection) -> None:
    """Use it as if nothing had happened."""
    with gevent.Timeout(SOON):
        connection.connect()
        session = connection.session
        assert session.wait_ready(Deadline(SOON)) is session.life
        assert session.state is SessionState.OPEN
        connection.default_channel.queue_declare("signals", auto_delete=False)
        connection.close()


def step(long: bool) -> int:
    """Return how many bytecodes lie between two signals."""
    return 1 if long else 7


@pytest.mark.parametrize("use", [connected, closed, lost])
@pytest.mark.parametrize("has_member", [False, True], ids=["alone", "with a member"])
def test_a_session_can_be_used_after_a_signal_amid_a_change(
    connections: Callable[[], Connection],
    caplog: pytest.LogCaptureFixture,
    use: Callable[[Connection], None],
    has_member: bool,
    long: bool,
) -> None:
    def renewed() -> Connection:
        connection = connections()
        if use is not connected:
            connection.connect()
        if has_member:
            connection.session.add(Member())
        return connection

    used, every = [renewed()], step(long)
    first = random.randint(1, every)
    for raised in signals(lambda: use(used[-1]), first=first, step=every, within=WITHIN):
        assert raised is None or isinstance(raised, Signal)
        check(used[-1])
        used.append(renewed())
    assert len(used) > 20


def test_a_session_can_be_used_after_a_signal_amid_an_attempt(
    connections: Callable[[], Connection],
    caplog: pytest.LogCaptureFixture,
    hub_errors: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    long: bool,
) -> None:
    run = SignalAt(0)

    def spawn_traced(name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        def traced() -> None:
            run._greenlet = getcurrent()
            if (raised := run.run(function)) is not None:
                raise raised

        return spawn(name, traced) if name == "connect" else spawn(name, function, *args, **options)

    every = 1 if long else 40
    number, left = random.randint(1, every), 0
    while left <= 0:
        run, connection = SignalAt(number, WITHIN), connections()
        with monkeypatch.context() as patched:
            patched.setattr("greenconn.session.connect.spawn", spawn_traced)
            with suppress(Signal, *connection.connection_errors, OSError):
                connection.connect()
        check(connection)
        number, left = number + every, run.left
    hub_errors.clear()
    assert number > 200
