"""The life of a connection: opening, losing, recovering, closing."""

from __future__ import annotations

import gc
import logging
import os
import weakref
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.threadpool import ThreadPool

from greenconn.connection import Connection
from greenconn.credentials import SuppliedError
from greenconn.exceptions import (
    AccessRefused,
    NotFound,
    RecoverableConnectionError,
    ResourceLocked,
    WrongHub,
)
from greenconn.green.deadline import LEAST_SHARE, Deadline
from greenconn.green.hub import yield_to_hub
from greenconn.green.retry import RetryPolicy
from greenconn.session.session import Session, SessionState
from greenconn.transport import TRANSPORT_ALIASES
from tests.fix_wires import until
from tests.scripted import Script, Transport

Connect = Callable[..., Connection]

REFUSED = ConnectionRefusedError(111, "nobody listens")
CAME = 30.0


def until_life(session: Session, number: int) -> None:
    """Let others run until all is restored in life *number*."""
    until(lambda: session.generation == number and session.state is SessionState.OPEN)


class Member:
    """What is restored; it does what *acts* say, one each time."""

    def __init__(self, name: str, log: list[str], *acts: Any) -> None:
        self.name = name
        self.log = log
        self.acts = list(acts)
        self.failure: BaseException | None = None

    def recover(self, deadline: Deadline) -> None:
        assert deadline.left() is not None
        act = self.acts.pop(0) if self.acts else None
        if isinstance(act, BaseException):
            raise act
        if act is not None:
            act()
        self.log.append(self.name)


class Notified(Member):
    """A member that wants to know of its failure."""

    def failed(self, exc: BaseException) -> None:
        self.failure = exc


# -- opening -------------------------------------------------------------------------------------


def test_a_thousand_greenlets_cause_one_attempt(session: Session, script: Script) -> None:
    gate = Event()
    script.plan("one", gate.wait)
    waiting = [gevent.spawn(session.link) for _ in range(1000)]
    until(lambda: script.attempts)
    gate.set()
    gevent.joinall(waiting, timeout=CAME, raise_error=True)
    assert {greenlet.value for greenlet in waiting} == {script.link}
    assert script.attempts == ["one"]


def test_a_thousand_greenlets_walk_once_over_the_list(connect: Connect, script: Script) -> None:
    connection = connect("scripted://one;scripted://two;scripted://three")
    script.otherwise["one"] = script.otherwise["two"] = REFUSED
    waiting = [gevent.spawn(connection.session.link) for _ in range(1000)]
    gevent.joinall(waiting, timeout=CAME, raise_error=True)
    assert script.attempts == ["one", "two", "three"]
    assert script.link.host == "three"
    assert connection.hostname == "three"


class Unmade(Transport):
    """A transport whose library is missing."""

    def __init__(self, client: Any, **options: Any) -> None:
        raise ImportError("the library of a transport is missing")


def test_a_transport_that_cannot_be_made_is_an_error_for_its_callers(connect: Connect) -> None:
    connection = connect("scripted://one", transport=Unmade)
    for _ in range(2):
        with pytest.raises(ImportError, match="is missing"):
            connection.session.link()
        assert connection.session.state is SessionState.IDLE
    connection.session.wait_settled(Deadline(CAME))


def test_a_transport_that_cannot_be_made_leaves_the_others_of_the_list(
    connect: Connect, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRANSPORT_ALIASES, "unmade", f"{__name__}:Unmade")
    connection = connect("unmade://one;scripted://two")
    assert connection.session.link() is script.link
    assert script.attempts == ["two"]
    script.link.lose()
    assert connection.session.link() is script.link
    assert script.attempts == ["two", "two"]
    both = connect("unmade://one;unmade://two")
    with pytest.raises(ImportError, match="is missing"):
        both.session.link()
    assert both.session.state is SessionState.IDLE


def test_a_killed_caller_does_not_disturb_the_others(session: Session, script: Script) -> None:
    gate = Event()
    script.plan("one", gate.wait)
    first, second = (gevent.spawn(session.link) for _ in range(2))
    until(lambda: script.attempts)
    first.kill()
    gate.set()
    assert second.get(timeout=CAME) is script.link
    assert script.attempts == ["one"]


def test_killing_the_last_caller_ends_the_attempt(session: Session, script: Script) -> None:
    ended = Event()

    def attempt() -> None:
        try:
            gevent.sleep(CAME)
        finally:
            ended.set()

    script.plan("one", attempt)
    caller = gevent.spawn(session.link)
    until(lambda: script.attempts)
    caller.kill()
    assert ended.wait(CAME)
    assert session.state is SessionState.IDLE
    assert session.link() is script.link
    # It was not counted as a failure: no back-off.
    assert len(script.links) == 1


def test_a_callers_timeout_leaves_the_attempt_to_the_next(session: Session, script: Script) -> None:
    gate = Event()
    script.plan("one", gate.wait)
    with pytest.raises(TimeoutError, match=r"scripted://.*within 0\.01 s"):
        session.link(Deadline(0.01))
    assert session.state is SessionState.OPENING
    gate.set()
    assert session.link(Deadline(CAME)) is script.link
    assert script.attempts == ["one"]


@pytest.mark.parametrize("kind", [gevent.Timeout, TimeoutError, OSError, ValueError])
def test_what_is_thrown_into_a_caller_comes_out_of_it(
    session: Session, script: Script, kind: type[BaseException]
) -> None:
    script.otherwise["one"] = lambda: gevent.sleep(CAME)
    error = kind() if kind is not gevent.Timeout else gevent.Timeout(None)
    caller = gevent.spawn(_catch, session.link)
    until(lambda: script.attempts)
    gevent.kill(caller, error)
    assert caller.get(timeout=CAME) is error
    assert session.state is SessionState.IDLE


def _catch(function: Callable[[], Any]) -> BaseException | None:
    try:
        function()
    except BaseException as exc:
        return exc
    return None


def test_the_deadline_covers_the_whole_walk(connect: Connect, script: Script) -> None:
    connection = connect("scripted://one;scripted://two")
    script.otherwise["one"] = script.otherwise["two"] = REFUSED
    began = Deadline(4 * CAME)
    with pytest.raises(OSError):
        connection.session.link(Deadline(2.0))
    assert len(script.attempts) >= 4
    left = began.left()
    assert left is not None
    assert left > 0


def test_without_a_deadline_connect_timeout_bounds_the_walk(
    connect: Connect, script: Script
) -> None:
    connection = connect(connect_timeout=0.2)
    script.otherwise["one"] = REFUSED
    with pytest.raises(OSError):
        connection.session.link()


def test_without_any_bound_two_rounds_are_made(connect: Connect, script: Script) -> None:
    connection = connect("scripted://one;scripted://two", connect_timeout=None)
    script.otherwise["one"] = script.otherwise["two"] = REFUSED
    with pytest.raises(ConnectionRefusedError):
        connection.session.link()
    assert script.attempts == ["one", "two"] * 2


def times(script: Script) -> list[float]:
    """Return the seconds that the attempts had."""
    return [each.timeout or 0.0 for each in script.deadlines]


@pytest.mark.parametrize(("hosts", "share"), [(2, 30.0), (3, 20.0), (60, LEAST_SHARE)])
def test_in_the_first_round_each_broker_but_the_last_gets_a_share(
    connect: Connect, script: Script, hosts: int, share: float
) -> None:
    names = [f"host-{number}" for number in range(hosts)]
    connection = connect([f"scripted://{name}" for name in names], connect_timeout=60)
    for name in names:
        script.otherwise[name] = REFUSED
    script.plan(names[0], REFUSED, None)  # it accepts in the second round
    connection.session.link()
    assert times(script) == pytest.approx([*[share] * (hosts - 1), 60, 60], abs=1.0)


def test_a_silent_broker_does_not_take_the_time_of_the_next(
    connect: Connect, script: Script
) -> None:
    connection = connect("scripted://one;scripted://two", connect_timeout=0.2)
    script.otherwise["one"] = script.be_silent
    outcome = connection.session.attempt(Deadline(CAME))
    assert outcome.result().host == "two"
    assert script.attempts == ["one", "two"]


def test_a_slow_broker_gets_all_of_the_time_before_one_round_is_over(
    connect: Connect, script: Script
) -> None:
    connection = connect("scripted://one;scripted://two", connect_timeout=0.2)
    script.plan("one", script.be_silent, None)
    script.otherwise["two"] = REFUSED
    assert connection.session.link(Deadline(CAME), rounds=1).host == "one"
    assert script.attempts == ["one", "two", "one"]
    assert times(script)[0] <= 0.1
    assert times(script)[1:] == [0.2, 0.2]


def test_all_brokers_that_are_silent_have_had_all_of_the_time_when_a_round_is_over(
    connect: Connect, script: Script
) -> None:
    connection = connect("scripted://one;scripted://two", connect_timeout=0.2)
    script.otherwise["one"] = script.otherwise["two"] = script.be_silent
    with pytest.raises(TimeoutError, match="no reply"):
        connection.session.link(Deadline(CAME), rounds=1)
    assert script.attempts == ["one", "two", "one"]
    assert times(script)[0] <= 0.1
    assert times(script)[1:] == [0.2, 0.2]


def test_when_the_time_is_over_the_error_of_the_silent_broker_is_raised(
    connect: Connect, script: Script
) -> None:
    connection = connect("scripted://one;scripted://two", connect_timeout=0.2)
    script.otherwise["one"] = script.be_silent
    script.otherwise["two"] = lambda: gevent.sleep(CAME)
    with pytest.raises(TimeoutError, match="no reply"):
        connection.session.link(Deadline(1.0))
    assert script.attempts == ["one", "two"]


@pytest.mark.parametrize("takes_deadline", [True, False])
def test_only_a_transport_that_takes_a_deadline_can_be_cut_short(
    connect: Connect, script: Script, monkeypatch: pytest.MonkeyPatch, takes_deadline: bool
) -> None:
    """One of kombu's contract has had all of the time when it fails."""
    if not takes_deadline:
        establish = Transport.establish_connection
        monkeypatch.setattr(Transport, "establish_connection", lambda self: establish(self))
    connection = connect("scripted://one;scripted://two", connect_timeout=0)
    script.otherwise["one"] = TimeoutError("no reply")
    outcome = connection.session.attempt(Deadline(CAME))
    assert (outcome.error is None) is takes_deadline
    assert script.attempts == ["one", "two"][: 1 + takes_deadline]


def test_a_session_that_is_closed_between_two_attempts_stays_closed(
    connect: Connect, script: Script
) -> None:
    connection = connect("scripted://one;scripted://two", connect_timeout=0.2)
    session = connection.session

    def close() -> None:
        gevent.get_hub().loop.run_callback(gevent.spawn, session.close)
        script.be_silent()

    script.otherwise["one"] = close
    with pytest.raises(RecoverableConnectionError, match="closed"):
        session.link(Deadline(CAME), reopen=True)
    assert script.attempts == ["one"]
    assert session.is_closed


def test_a_refused_login_is_raised_at_once(session: Session, script: Script) -> None:
    script.otherwise["one"] = AccessRefused("wrong password")
    with pytest.raises(AccessRefused):
        session.link()
    assert script.attempts == ["one"]


def test_a_login_that_one_broker_refuses_is_tried_at_the_others(
    connect: Connect, script: Script
) -> None:
    connection = connect("scripted://one;scripted://two;scripted://three")
    script.otherwise["one"] = AccessRefused("wrong password")
    script.otherwise["two"] = REFUSED
    assert connection.session.link().host == "three"
    connection.collect()
    script.otherwise["two"] = script.otherwise["three"] = AccessRefused("wrong password")
    with pytest.raises(AccessRefused):
        connection.session.link()
    assert script.attempts[3:] == ["three", "one", "two"]


def test_an_error_of_no_network_is_raised_at_once(session: Session, script: Script) -> None:
    script.otherwise["one"] = LookupError("a bug")
    with pytest.raises(LookupError):
        session.link()
    assert script.attempts == ["one"]


def test_an_error_of_the_program_passes_once_a_link_was_open(
    session: Session, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    log: list[str] = []
    session.link()
    session.add(Member("a", log))
    failures = [KeyError("x"), gevent.Timeout(CAME), KeyError("x"), ValueError("y")]
    script.plan("one", *failures)
    script.link.lose()
    until_life(session, 2)
    assert log == ["a"]
    warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
    told = [each for each in warnings if "the program supplies" in each.getMessage()]
    assert [each.exc_info and each.exc_info[0] for each in told] == [
        KeyError,
        gevent.Timeout,
        ValueError,
    ]


def test_a_caller_gets_the_error_of_the_program_once_a_link_was_open(
    connection: Connection, script: Script
) -> None:
    connection.connect()
    script.link.lose()
    script.otherwise["one"] = KeyError("x")
    with pytest.raises(SuppliedError, match="KeyError: 'x'") as failed:
        connection.connect()
    assert isinstance(failed.value.__cause__, KeyError)
    # A clone logs in as the connection does, so its start is not the first.
    with pytest.raises(SuppliedError, match="KeyError: 'x'"):
        connection.clone().connect()


def test_a_timeout_of_the_program_is_no_timeout_of_the_caller(
    connection: Connection, script: Script
) -> None:
    script.plan("one", gevent.Timeout(CAME))
    with pytest.raises(SuppliedError, match="Timeout"):
        connection.connect()
    script.plan("one", lambda: gevent.sleep(CAME))
    with pytest.raises(gevent.Timeout) as own, gevent.Timeout(0.01) as mine:
        connection.connect()
    assert own.value is mine


def test_all_callers_get_the_same_error_with_a_traceback_of_their_own(
    session: Session, script: Script
) -> None:
    script.plan("one", AccessRefused("no"))
    callers = [gevent.spawn(_catch, session.link) for _ in range(3)]
    errors = [caller.get(timeout=CAME) for caller in callers]
    assert len({id(error) for error in errors}) == 1
    assert errors[0] is not None
    depth, traceback = 0, errors[0].__traceback__
    while traceback is not None:
        depth, traceback = depth + 1, traceback.tb_next
    assert depth < 15


def test_a_link_that_is_lost_at_once_counts_as_failed(session: Session, script: Script) -> None:
    links = script.links

    class Stillborn(list[Any]):
        def append(self, link: Any) -> None:
            super().append(link)
            if len(self) == 1:
                link.lose()

    script.links = Stillborn(links)
    link = session.link(Deadline(CAME))
    assert link is script.links[1]
    assert session.generation == 1


# -- losing --------------------------------------------------------------------------------------


def test_without_members_the_next_use_opens_again(connection: Connection, script: Script) -> None:
    connection.session.link()
    connection.declared_entities.add("exchange")
    flight = connection.declare_flight
    script.link.lose()
    until(lambda: connection.session.state is SessionState.IDLE)
    assert not connection.connected
    assert connection.declared_entities == set()
    gevent.sleep(0.01)
    assert script.attempts == ["one"]
    assert connection.session.link() is script.links[1]
    assert connection.session.generation == 2
    assert connection.declare_flight is not flight


def test_a_loss_is_noticed_before_its_own_notice_comes(session: Session, script: Script) -> None:
    session.link()
    script.link.lose()
    assert session.link() is script.links[1]
    yield_to_hub()
    # The late notice of the former life changes nothing.
    assert session.state is SessionState.OPEN
    assert session.link() is script.links[1]


def test_after_a_loss_the_next_broker_is_tried_first(connect: Connect, script: Script) -> None:
    connection = connect("scripted://one;scripted://two")
    connection.session.link()
    script.link.lose()
    assert connection.session.link().host == "two"


def test_listeners_are_notified(connection: Connection, script: Script) -> None:
    notified: list[object] = []
    session = connection.session
    connection.on_connection_lost.append(notified.append)
    connection.on_recovered.append(lambda: notified.append("recovered"))
    session.on_closed.append(lambda: notified.append("closed"))
    session.add(Member("a", []))
    session.link()
    lost = RecoverableConnectionError("gone")
    script.link.lose(lost)
    until(lambda: notified == [lost, "recovered"])
    connection.close()
    assert notified == [lost, "recovered", "closed"]


def test_without_members_the_next_use_reports_that_it_is_back(
    connection: Connection, script: Script
) -> None:
    notified: list[str] = []
    connection.on_recovered.append(lambda: notified.append("recovered"))
    connection.session.link()
    yield_to_hub()
    assert notified == []  # it was not away
    script.link.lose()
    until(lambda: connection.session.is_lost)
    assert notified == []
    connection.session.link()
    until(lambda: notified == ["recovered"])
    connection.close()
    connection.connect()
    yield_to_hub()
    assert notified == ["recovered"]


def test_a_listener_that_fails_affects_nobody_else(
    connection: Connection, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    session = connection.session
    notified: list[object] = []
    connection.on_connection_lost.append(lambda exc: 1 / 0)
    connection.on_connection_lost.append(notified.append)
    session.link()
    script.link.lose()
    until(lambda: "ZeroDivisionError" in caplog.text and bool(notified))
    assert caplog.text.count("ZeroDivisionError") == 1
    assert session.link() is script.links[1]


# -- recovering ----------------------------------------------------------------------------------


def test_a_member_that_left_is_not_restored(session: Session, script: Script) -> None:
    log: list[str] = []
    leaving, staying = Member("leaving", log), Member("staying", log)
    session.add(leaving)
    session.add(leaving)
    session.add(staying)
    session.link()
    session.discard(leaving)
    session.discard(leaving)
    script.link.lose()
    until(lambda: log)
    assert log == ["staying"]


def test_when_the_last_member_leaves_nobody_reconnects(session: Session, script: Script) -> None:
    member = Member("a", [])
    session.add(member)
    session.link()
    script.otherwise["one"] = REFUSED
    script.link.lose()
    until(lambda: len(script.attempts) > 1)
    session.discard(member)
    until(lambda: session.state is SessionState.IDLE)
    tries = len(script.attempts)
    gevent.sleep(0.3)
    assert len(script.attempts) == tries


def test_drain_raises_once_in_each_greenlet_then_waits_until_all_is_restored(
    connection: Connection, script: Script
) -> None:
    gate = Event()
    log: list[str] = []
    connection.session.add(Member("a", log, gate.wait))
    connection.session.link()
    draining = [gevent.spawn(_catch, connection.drain_events) for _ in range(3)]
    until(lambda: script.link.events.waiting == 3)
    lost = RecoverableConnectionError("gone")
    script.link.lose(lost)
    errors = [greenlet.get(timeout=CAME) for greenlet in draining]
    assert [(type(error), str(error)) for error in errors] == [(type(lost), str(lost))] * 3
    again = gevent.spawn(connection.drain_events)
    until(lambda: len(script.links) == 2)
    script.link.events.put((log.append, "event"))
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.02)
    assert log == []
    gate.set()
    again.get(timeout=CAME)
    assert log == ["a", "event"]


def test_polling_without_a_timeout_lets_recovery_run(
    connection: Connection, script: Script
) -> None:
    log: list[str] = []
    connection.session.add(Member("a", log))
    connection.session.link()
    script.link.lose()
    deadline = Deadline(CAME)
    while not log and not deadline.has_ended:
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0)
    assert log == ["a"]


def test_a_link_that_is_lost_while_members_are_restored_is_replaced(
    session: Session, script: Script
) -> None:
    log: list[str] = []

    def lose() -> None:
        script.link.lose()
        raise RecoverableConnectionError("gone")

    session.add(Member("a", log))
    session.add(Member("b", log, lose))
    session.link()
    script.link.lose()
    until_life(session, 3)
    assert log == ["a", "a", "b"]
    assert len(script.links) == 3


def test_a_link_may_be_lost_without_an_error_in_the_member(
    session: Session, script: Script
) -> None:
    log: list[str] = []
    session.add(Member("a", log, lambda: script.link.lose()))
    session.link()
    script.link.lose()
    until_life(session, 3)
    assert log == ["a", "a"]
    assert len(script.links) == 3


def test_a_member_may_use_the_new_link_while_it_is_restored(
    connection: Connection, script: Script
) -> None:
    used: list[str] = []
    connection.session.add(Member("a", used, lambda: used.append(connection.default_channel.use())))
    connection.session.link()
    script.link.lose()
    until(lambda: used == ["one", "a"])


def test_a_member_that_cannot_be_restored_is_reported_and_left_out(
    session: Session, script: Script
) -> None:
    log: list[str] = []
    error = NotFound("no queue")
    notified = Notified("told", log, error)
    session.add(notified)
    session.add(Member("other", log))
    session.link()
    script.link.lose()
    until(lambda: log == ["other"])
    assert notified.failure is error
    script.link.lose()
    until(lambda: log == ["other", "other"])


def test_an_error_that_nobody_takes_reaches_who_drains(
    connection: Connection, script: Script
) -> None:
    connection.session.add(Member("a", [], NotFound("no queue")))
    connection.session.link()
    script.link.lose()
    with pytest.raises(NotFound, match="no queue"):
        connection.drain_events(timeout=CAME)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.01)


def test_what_may_pass_is_tried_again_apart(session: Session, script: Script) -> None:
    log: list[str] = []
    session.add(Member("a", log, ResourceLocked("held"), TimeoutError("late")))
    session.add(Member("b", log))
    session.link()
    script.link.lose()
    until_life(session, 2)
    assert log == ["b"]
    until(lambda: log == ["b", "a"])


def test_what_is_tried_again_apart_may_fail_for_good(session: Session, script: Script) -> None:
    member = Notified("a", [], ResourceLocked("held"), NotFound("gone"))
    session.add(member)
    session.link()
    script.link.lose()
    until(lambda: isinstance(member.failure, NotFound))


def test_a_refusal_ends_recovery_and_a_later_use_restores(
    connection: Connection, script: Script
) -> None:
    log: list[str] = []
    notified = Notified("told", log)
    connection.session.add(notified)
    connection.session.link()
    refusal = AccessRefused("the password was changed")
    script.plan("one", REFUSED, refusal)
    script.link.lose()
    with pytest.raises(AccessRefused):
        connection.drain_events(timeout=CAME)
    assert notified.failure is refusal
    assert connection.session.state is SessionState.IDLE
    assert len(script.attempts) == 3
    connection.session.link()
    until_life(connection.session, 2)
    assert log == ["told"]


def test_an_explicit_use_hurries_recovery(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, script: Script
) -> None:
    patient = RetryPolicy(first=10 * CAME, longest=10 * CAME)
    monkeypatch.setattr("greenconn.session.connect.ROUNDS_APART", patient)
    connection: Connection = request.getfixturevalue("connection")
    connection.session.add(Member("a", []))
    connection.session.link()
    script.otherwise["one"] = REFUSED
    script.link.lose()
    until(lambda: len(script.attempts) == 2)
    del script.otherwise["one"]
    with gevent.Timeout(CAME):
        connection.connect()
    assert len(script.attempts) == 3


def test_waiting_callers_are_served_while_members_are_restored(
    connection: Connection, script: Script
) -> None:
    gate = Event()
    connection.session.add(Member("a", [], gate.wait))
    connection.session.link()
    script.link.lose()
    until(lambda: len(script.links) == 2)
    assert connection.session.state is SessionState.RECOVERING
    assert connection.session.link(Deadline(CAME)) is script.link
    assert connection.channel().use() == "one"
    gate.set()


# -- closing -------------------------------------------------------------------------------------


def test_close_is_idempotent_and_explicit_use_opens_again(
    connection: Connection, script: Script
) -> None:
    link = connection.connect()
    connection.close()
    connection.close()
    assert connection.session.is_closed
    assert not link.is_open
    assert connection.connection is None
    with pytest.raises(RecoverableConnectionError, match="was closed"):
        connection.drain_events(timeout=0.01)
    assert len(script.links) == 1
    connection.connect()
    assert connection.connected
    assert connection.session.state is SessionState.OPEN


def test_close_wakes_whoever_waits(connection: Connection, script: Script) -> None:
    gate = Event()
    connection.session.add(Member("a", [], gate.wait))
    connection.session.link()
    draining = gevent.spawn(_catch, connection.drain_events)
    until(lambda: script.link.events.waiting)
    script.link.lose()
    draining.get(timeout=CAME)
    draining = gevent.spawn(_catch, connection.drain_events)
    until(lambda: len(script.links) == 2)
    yield_to_hub()
    connection.close()
    error = draining.get(timeout=CAME)
    assert isinstance(error, RecoverableConnectionError)
    assert "was closed" in str(error)


def test_close_wakes_who_drains_an_open_link(connection: Connection, script: Script) -> None:
    connection.session.link()
    draining = gevent.spawn(_catch, connection.drain_events)
    until(lambda: script.link.events.waiting)
    connection.close()
    assert isinstance(draining.get(timeout=CAME), RecoverableConnectionError)


def test_close_ends_an_attempt(connection: Connection, script: Script) -> None:
    ended = Event()

    def attempt() -> None:
        try:
            gevent.sleep(CAME)
        finally:
            ended.set()

    script.plan("one", attempt)
    caller = gevent.spawn(_catch, connection.connect)
    until(lambda: script.attempts)
    connection.close()
    error = caller.get(timeout=CAME)
    assert isinstance(error, RecoverableConnectionError)
    assert "was closed" in str(error)
    assert ended.wait(CAME)


def test_a_link_that_comes_after_close_is_dropped(connection: Connection, script: Script) -> None:
    def attempt() -> None:
        # It cannot be killed any more, as one whose last byte has come.
        try:
            gevent.sleep(CAME)
        except gevent.GreenletExit:
            pass

    script.plan("one", attempt)
    caller = gevent.spawn(_catch, connection.connect)
    until(lambda: script.attempts)
    connection.close()
    assert isinstance(caller.get(timeout=CAME), RecoverableConnectionError)
    until(lambda: script.links)
    assert script.link.is_collected
    assert connection.session.is_closed


def test_close_ends_recovery_for_good(connection: Connection, script: Script) -> None:
    connection.session.add(Member("a", [], ResourceLocked("held")))
    connection.session.link()
    script.otherwise["one"] = REFUSED
    script.link.lose()
    until(lambda: len(script.attempts) > 2)
    connection.close()
    tries = len(script.attempts)
    gevent.sleep(0.3)
    assert len(script.attempts) == tries
    del script.otherwise["one"]
    connection.connect()
    assert connection.session.state is SessionState.OPEN


def test_close_ends_what_is_tried_again_apart(connection: Connection, script: Script) -> None:
    member = Member("a", [], *[ResourceLocked("held")] * 9)
    connection.session.add(member)
    connection.session.link()
    script.link.lose()
    until(lambda: len(member.acts) < 9)
    connection.close()
    left = len(member.acts)
    gevent.sleep(0.3)
    assert len(member.acts) == left


def test_a_member_may_close_the_connection(connection: Connection, script: Script) -> None:
    done = Event()

    def close() -> None:
        connection.close()
        done.set()

    connection.session.add(Member("a", [], close))
    connection.session.add(Member("b", []))
    connection.session.link()
    script.link.lose()
    assert done.wait(CAME)
    yield_to_hub()
    assert connection.session.is_closed
    assert script.open_links == []


def test_a_close_that_is_killed_leaves_nothing_open(connection: Connection, script: Script) -> None:
    script.on_close = lambda: gevent.sleep(CAME)
    link = connection.connect()
    closing = gevent.spawn(connection.close)
    until(lambda: connection.session.is_closed)
    closing.kill()
    assert not link.is_open
    assert link.is_collected


def test_an_error_in_closing_is_nobodys(connection: Connection, script: Script) -> None:
    def fail() -> None:
        raise OSError("broken pipe")

    script.on_close = fail
    link = connection.connect()
    connection.close()
    assert not link.is_open


def test_collect_drops_at_once_and_the_next_use_begins_anew(
    connection: Connection, script: Script
) -> None:
    link = connection.connect()
    connection.session.add(Member("a", []))
    connection.collect()
    assert link.is_collected
    assert connection.session.state is SessionState.IDLE
    assert connection.connect() is script.links[1]
    connection.close()
    connection.collect()
    assert connection.session.is_closed


def test_a_closed_session_forgets_its_members(connection: Connection, script: Script) -> None:
    log: list[str] = []
    connection.session.add(Member("a", log))
    connection.connect()
    connection.close()
    connection.connect()
    script.link.lose()
    until(lambda: connection.session.state is SessionState.IDLE)
    assert log == []


# -- hubs, forks, references ---------------------------------------------------------------------


def test_use_from_another_thread_names_both_and_the_remedy(
    connection: Connection, thread: ThreadPool
) -> None:
    connection.connect()
    error = thread.apply(_catch, (connection.connect,))
    assert isinstance(error, WrongHub)
    assert "MainThread" in str(error)
    assert "clone()" in str(error)
    assert "secret" not in str(error)


def test_a_closed_connection_may_move_to_another_thread(
    connection: Connection, thread: ThreadPool
) -> None:
    connection.connect()
    connection.close()

    def use() -> BaseException | None:
        try:
            return _catch(connection.connect)
        finally:
            connection.close()

    assert thread.apply(use) is None


def test_the_child_of_a_fork_begins_anew(connection: Connection, script: Script) -> None:
    connection.session.add(Member("a", []))
    connection.connect()
    old = script.link
    read, write = os.pipe()
    pid = os.fork()  # gevent's own would watch for children from now on
    if pid == 0:
        try:
            gevent.reinit()
            assert connection.session.state is SessionState.IDLE
            assert connection.connect() is not old
            old.end(RecoverableConnectionError("of the parent"))
            gevent.sleep(0.01)
            assert connection.connected
            os.write(write, b"fine")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    assert os.read(read, 4) == b"fine"
    os.close(read)
    assert connection.connection is old


def test_the_child_of_a_fork_does_not_go_on_with_an_attempt(
    connection: Connection, script: Script
) -> None:
    read, write = os.pipe()

    def attempt() -> None:
        gevent.sleep(0.05)
        os.write(write, b"dialled ")

    script.plan("one", attempt)
    calling = gevent.spawn(connection.connect)
    until(lambda: script.attempts)
    pid = os.fork()  # gevent's own would watch for children from now on
    if pid == 0:
        try:
            gevent.reinit()
            gevent.sleep(0.1)
            if connection.session.state is SessionState.IDLE:
                os.write(write, b"idle ")
        finally:
            os._exit(0)
    calling.get(timeout=CAME)
    os.waitpid(pid, 0)
    os.close(write)
    assert sorted(os.read(read, 99).split()) == [b"dialled", b"idle"]
    os.close(read)


def test_a_connection_that_was_closed_is_garbage(script: Script) -> None:
    connection = Connection("scripted://one")
    connection.session.add(Member("a", []))
    connection.connect()
    connection.close()
    gone = weakref.ref(connection)
    script.links.clear()
    del connection
    gc.collect()
    assert gone() is None


def test_draining_a_closed_connection_in_a_loop_lets_others_run(connection: Connection) -> None:
    connection.connect()
    connection.close()
    others = gevent.spawn(gevent.sleep, 0.01)
    deadline = Deadline(CAME)
    while not others.dead and not deadline.has_ended:
        with pytest.raises(RecoverableConnectionError):
            connection.drain_events()
    assert others.dead


def killed(name: str) -> int:
    """Kill the library's greenlets called *name*, as ``gevent.killall`` of everything would."""
    found = [
        each
        for each in gc.get_objects()
        # Not isinstance(), which asks a proxy whose object may be gone.
        if issubclass(type(each), gevent.Greenlet)
        and each.name == f"greenconn:{name}"
        and not each.dead
    ]
    gevent.killall(found)
    return len(found)


def test_a_recovery_that_somebody_kills_keeps_nobody_waiting(
    connection: Connection, script: Script
) -> None:
    log: list[str] = []
    connection.session.add(Member("a", log))
    connection.session.link()
    script.otherwise["one"] = REFUSED
    script.link.lose()
    draining = gevent.spawn(_catch, connection.drain_events)
    until(lambda: len(script.attempts) > 2)
    assert killed("recovery") == 1
    assert isinstance(draining.get(timeout=CAME), RecoverableConnectionError)
    del script.otherwise["one"]
    connection.session.link()
    until_life(connection.session, 2)
    assert log == ["a"]


def test_an_attempt_that_somebody_kills_keeps_nobody_waiting(
    session: Session, script: Script
) -> None:
    script.plan("one", lambda: gevent.sleep(CAME))
    calling = gevent.spawn(session.link)
    until(lambda: script.attempts)
    assert killed("connect") == 1
    assert calling.get(timeout=CAME) is script.link
