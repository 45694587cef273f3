"""A log handler that waits leaves no session half changed."""

from __future__ import annotations

from typing import Any, cast

import gevent
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.green.deadline import Deadline
from greenconn.session.session import Members, Session, SessionState
from tests.fix_logs import waiting_log
from tests.fix_wires import until
from tests.scripted import Script

CAME = 30.0


def test_a_connection_that_is_logged_may_be_used(connection: Connection, script: Script) -> None:
    session = connection.session
    with waiting_log("greenconn.session", "connected to") as log:
        opening = gevent.spawn(session.link)
        assert log.has_come.wait(CAME)
        assert session.state is SessionState.OPEN
        assert session.wait_ready(Deadline(CAME)).link is script.link
        assert opening.get(timeout=CAME) is script.link


def test_a_log_handler_may_wait_for_the_connection_that_is_being_opened(
    connection: Connection, script: Script
) -> None:
    session = connection.session
    with waiting_log("greenconn.session", "open.started") as log:
        opening = gevent.spawn(session.link)
        assert log.has_come.wait(CAME)
        assert opening.get(timeout=CAME) is script.link


def test_a_loss_that_is_logged_does_not_end_the_next_life(
    connection: Connection, script: Script
) -> None:
    session = connection.session
    session.link()
    with waiting_log("greenconn.session", " lost: ") as log:
        losing = gevent.spawn(script.link.lose)
        assert log.has_come.wait(CAME)
        assert gevent.spawn(session.link).get(timeout=CAME) is script.links[1]
        log.may_go_on.set()
        losing.join(CAME)
    assert session.state is SessionState.OPEN
    assert session.wait_ready(Deadline(CAME)).link is script.links[1]


def test_a_failure_that_is_logged_does_not_end_the_next_attempt(
    connection: Connection, script: Script
) -> None:
    session = connection.session
    is_trying, may_open = Event(), Event()

    def wait() -> None:
        is_trying.set()
        may_open.wait()

    script.plan("one", ConnectionRefusedError(111, "nobody listens"), wait)
    with waiting_log("greenconn.session", "open.failed") as log:
        first = gevent.spawn(session.attempt)
        assert log.has_come.wait(CAME)
        second = gevent.spawn(session.attempt)
        assert is_trying.wait(CAME)
        log.may_go_on.set()
        assert first.get(timeout=CAME).error is not None
    assert session.state.value == "opening"
    may_open.set()
    assert second.get(timeout=CAME).link is script.link
    assert session.state.value == "open"


def test_a_recovery_that_fails_and_is_logged_is_followed_by_the_next(session: Session) -> None:
    ends: list[object] = []

    class Session:
        broker = session.broker
        life = session.life

        def attempt(self) -> Any:
            raise ZeroDivisionError

        def end_recovery(self, error: object, seconds: float) -> None:
            ends.append(error)

    class Member:
        def recover(self, deadline: object) -> None:
            raise AssertionError("there is no link")

    members = Members(cast("Any", Session()))
    members.add(cast("Any", Member()))
    members.mark_due()
    with waiting_log("greenconn.session", "recovery failed") as log:
        members.begin()
        assert log.has_come.wait(CAME)
        members.begin()
        log.may_go_on.set()
        until(lambda: len(ends) == 2)
    assert all(isinstance(each, ZeroDivisionError) for each in ends)
