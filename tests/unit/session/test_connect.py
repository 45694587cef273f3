"""Attempts to connect: their states, who waits for them, and the time of the next one."""

from __future__ import annotations

from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.exceptions import AccessRefused, NotAllowed, RecoverableConnectionError
from greenconn.green.deadline import Deadline
from greenconn.session.connect import (
    ROUNDS_APART,
    Attempt,
    AttemptState,
    ConnectBackoff,
    is_lockout,
    is_refusal,
)

CAME = 30.0


class Link:
    """A link that is dropped or not."""

    def __init__(self) -> None:
        self.is_dropped = False

    def collect(self) -> None:
        self.is_dropped = True


class Ended(list[AttemptState]):
    """The states in which attempts were when they ended."""

    def note(self, attempt: Attempt) -> None:
        self.append(attempt.state)


@pytest.fixture
def ended() -> Ended:
    """Nothing has ended yet."""
    return Ended()


def test_an_attempt_that_opens_a_link(ended: Ended) -> None:
    link = Link()
    attempt = Attempt(lambda: link, ended.note, 0.0)
    assert attempt.state is AttemptState.SCHEDULED
    assert "scheduled" in repr(attempt)
    outcome = attempt.wait(Deadline(CAME))
    assert outcome is not None
    assert outcome.result() is link
    assert ended == [AttemptState.OPENED]


def test_an_attempt_that_fails(ended: Ended) -> None:
    def fail() -> Any:
        raise ConnectionRefusedError(111, "nobody listens")

    outcome = Attempt(fail, ended.note, 0.0).wait(Deadline(CAME))
    assert outcome is not None
    with pytest.raises(ConnectionRefusedError):
        outcome.result()
    assert ended == [AttemptState.FAILED]


def test_an_attempt_is_abandoned_with_its_last_caller(ended: Ended) -> None:
    began = Event()

    def hang() -> Any:
        began.set()
        gevent.sleep(CAME)

    attempt = Attempt(hang, ended.note, 0.0)
    callers = [gevent.spawn(attempt.wait, Deadline(CAME)) for _ in range(2)]
    assert began.wait(CAME)
    callers[0].kill()
    assert ended == []
    callers[1].kill()
    assert ended == [AttemptState.ABANDONED]


def test_an_aborted_attempt_notifies_who_waits_and_drops_its_link(ended: Ended) -> None:
    link, began, go_on = Link(), Event(), Event()

    def connect() -> Link:
        began.set()
        try:
            go_on.wait(CAME)
        except gevent.GreenletExit:
            pass  # it was there already when the kill came
        return link

    attempt = Attempt(connect, ended.note, 0.0)
    caller = gevent.spawn(attempt.wait, Deadline(CAME))
    assert began.wait(CAME)
    attempt.abort(RecoverableConnectionError("it was closed"))
    outcome = caller.get(timeout=CAME)
    assert outcome is not None
    with pytest.raises(RecoverableConnectionError, match="it was closed"):
        outcome.result()
    attempt._greenlet.join(CAME)
    assert link.is_dropped
    assert ended == [AttemptState.ABORTED]


def test_an_attempt_may_be_hurried(ended: Ended) -> None:
    later = monotonic() + 10 * CAME
    attempt = Attempt(Link, ended.note, later)
    caller = gevent.spawn(attempt.wait, Deadline(CAME))
    gevent.sleep(0)
    attempt.start_sooner(later + 1.0)
    assert attempt.state is AttemptState.SCHEDULED
    attempt.start_sooner(0.0)
    assert caller.get(timeout=CAME) is not None
    assert ended == [AttemptState.OPENED]


def test_a_killed_attempt_says_so_to_who_waits(ended: Ended) -> None:
    attempt = Attempt(lambda: gevent.sleep(CAME), ended.note, 0.0)
    caller = gevent.spawn(attempt.wait, Deadline(CAME))
    gevent.sleep(0)
    attempt._greenlet.kill()
    outcome = caller.get(timeout=CAME)
    assert outcome is not None
    with pytest.raises(RecoverableConnectionError, match="interrupted"):
        outcome.result()
    assert ended == [AttemptState.ABORTED]


def test_a_pause_follows_each_round_that_failed() -> None:
    backoff = ConnectBackoff()
    assert backoff.start_at(None) == 0.0
    backoff.failed(hosts=2)
    assert backoff.start_at(None) == backoff._failed_at
    backoff.failed(hosts=2)
    pause = backoff.start_at(None) - backoff._failed_at
    assert pause * 1.001 >= ROUNDS_APART.first / 2
    assert pause <= ROUNDS_APART.first * 1.001
    assert backoff.start_at(0.0) == backoff._failed_at
    assert backoff.failures == 2
    backoff.reset()
    assert backoff.failures == 0
    assert backoff.start_at(None) == backoff._failed_at


def test_a_refusal_is_distinguished_from_what_passes() -> None:
    assert is_refusal(AccessRefused("no such user"))
    assert not is_refusal(NotAllowed("connection limit of the virtual host is reached"))
    assert not is_refusal(ConnectionRefusedError(111, "nobody listens"))
    assert is_lockout(NotAllowed("access to vhost '/' refused for user 'guest'"))
    assert not is_lockout(NotAllowed("vhost 'gone' not found"))
