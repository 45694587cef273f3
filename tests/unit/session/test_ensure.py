"""Connecting again, and functions that survive the loss of connection and channel."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.exceptions import (
    NEVER_REPEATED,
    AccessRefused,
    ConnectionBlocked,
    NotFound,
    OperationalError,
    PublishTimeout,
    RecoverableChannelError,
    RecoverableConnectionError,
    WrongHub,
)
from greenconn.green.deadline import Deadline
from tests.scripted import Channel, Script

Connect = Callable[..., Connection]

REFUSED = ConnectionRefusedError(111, "nobody listens")
QUICK: dict[str, Any] = {"interval_start": 0.01, "interval_step": 0.01, "interval_max": 0.02}
CAME = 30.0


class Worker:
    """An object with a channel; each call does what *acts* say."""

    def __init__(self, *acts: Any) -> None:
        self.acts = list(acts)
        self.channel: Channel | None = None
        self.calls = 0

    def revive(self, channel: Channel) -> None:
        self.channel = channel

    def work(self, *args: Any, **kwargs: Any) -> Any:
        """What this is good for."""
        self.calls += 1
        act = self.acts.pop(0) if self.acts else None
        if isinstance(act, BaseException):
            raise act
        if act is not None:
            act()
        return args, kwargs


# -- ensure_connection ---------------------------------------------------------------------------


def test_each_failure_is_reported_with_the_interval(connection: Connection, script: Script) -> None:
    notified: list[tuple[BaseException, float]] = []
    script.plan("one", *[REFUSED] * 4)
    connection.ensure_connection(
        lambda exc, interval: notified.append((exc, interval)),
        interval_start=0,
        interval_step=0.01,
        interval_max=0.02,
    )
    assert notified == [(REFUSED, 0.0), (REFUSED, 0.01), (REFUSED, 0.02), (REFUSED, 0.02)]


def test_the_failing_host_can_be_seen_in_errback_and_intervals_follow_rounds(
    connect: Connect, script: Script
) -> None:
    connection = connect("scripted://one;scripted://two")
    seen: list[tuple[str | None, float]] = []
    script.plan("one", REFUSED, REFUSED)
    script.plan("two", REFUSED)
    connection.ensure_connection(
        lambda exc, interval: seen.append((connection.hostname, interval)),
        interval_start=0.01,
        interval_step=0,
        interval_max=0.01,
    )
    assert seen == [("one", 0.0), ("two", 0.01), ("one", 0.0)]
    assert script.link.host == "two"


def test_a_refused_login_is_not_tried_again(connection: Connection, script: Script) -> None:
    script.otherwise["one"] = AccessRefused("wrong password")
    with pytest.raises(AccessRefused):
        connection.ensure_connection()
    assert len(script.attempts) == 1


def test_errback_may_end_it(connection: Connection, script: Script) -> None:
    def give_up(exc: Exception, interval: float) -> None:
        raise LookupError("enough")

    script.otherwise["one"] = REFUSED
    with pytest.raises(LookupError):
        connection.ensure_connection(give_up)


def test_callback_is_called_for_each_second_of_a_long_wait(
    connection: Connection, script: Script
) -> None:
    called: list[int] = []
    script.plan("one", REFUSED)

    def callback() -> None:
        called.append(1)
        if len(called) == 2:  # the wait has begun: another opens the connection meanwhile
            gevent.spawn(connection.connect)

    connection.ensure_connection(callback=callback, interval_start=3)
    assert len(called) == 2


def test_timeout_bounds_all_of_it(connection: Connection, script: Script) -> None:
    script.otherwise["one"] = lambda: gevent.sleep(CAME)
    began = Deadline(CAME)
    with pytest.raises(OperationalError, match=r"within 0\.05 s"):
        connection.ensure_connection(timeout=0.05)
    script.otherwise["one"] = REFUSED
    connection.collect()
    with pytest.raises(OperationalError):
        connection.ensure_connection(timeout=0.05)
    assert (began.left() or 0.0) > CAME - 2.0


def test_who_waits_for_its_interval_goes_on_when_another_has_connected(
    connection: Connection, script: Script
) -> None:
    notified = Event()
    script.plan("one", REFUSED)
    waiting = gevent.spawn(
        connection.ensure_connection, lambda exc, interval: notified.set(), interval_start=30
    )
    assert notified.wait(CAME)
    connection.connect()
    assert waiting.get(timeout=CAME) is connection


def test_a_thousand_who_ensure_cause_one_attempt_at_a_time(
    connection: Connection, script: Script
) -> None:
    script.plan("one", *[REFUSED] * 3)
    waiting = [
        gevent.spawn(connection.ensure_connection, interval_start=0.05, interval_step=0)
        for _ in range(1000)
    ]
    gevent.joinall(waiting, timeout=20, raise_error=True)
    assert len(script.links) == 1
    assert len(script.attempts) == 4


def test_close_ends_the_wait(connection: Connection, script: Script) -> None:
    notified = Event()
    script.otherwise["one"] = REFUSED
    waiting = gevent.spawn(
        connection.ensure_connection, lambda exc, interval: notified.set(), interval_start=30
    )
    assert notified.wait(CAME)
    gevent.sleep(0.01)
    connection.close()
    with pytest.raises(RecoverableConnectionError, match="was closed"):
        waiting.get(timeout=CAME)


# -- ensure --------------------------------------------------------------------------------------


def test_a_lost_connection_is_opened_and_the_object_revived(
    connection: Connection, script: Script
) -> None:
    connection.connect()
    notified: list[tuple[BaseException, float]] = []
    revived: list[Any] = []
    lost = RecoverableConnectionError("gone")

    def lose() -> None:
        script.link.lose(lost)
        raise lost

    worker = Worker(lose)
    work = connection.ensure(
        worker,
        worker.work,
        errback=lambda exc, interval: notified.append((exc, interval)),
        on_revive=revived.append,
    )
    work()
    assert worker.calls == 2
    assert worker.channel is connection.default_channel
    assert revived == [worker.channel]
    assert notified == [(lost, 0)]
    assert len(script.links) == 2


def test_a_link_that_works_is_kept_whatever_the_error_was(
    connection: Connection, script: Script
) -> None:
    link = connection.connect()
    worker = Worker(OSError("of something else"))
    connection.ensure(worker, worker.work)()
    assert worker.calls == 2
    assert connection.connection is link


def test_a_channel_error_revives_on_a_fresh_default_channel(connection: Connection) -> None:
    old = connection.default_channel
    old.error = NotFound("no queue")
    worker = Worker(RecoverableChannelError("channel was closed"))
    connection.ensure(worker, worker.work)()
    assert worker.channel is not old
    assert worker.channel is connection.default_channel


def test_errors_that_nothing_helps_are_raised_as_they_are(connection: Connection) -> None:
    for error in (NotFound("no queue"), LookupError("a bug"), AccessRefused("no")):
        worker = Worker(error)
        with pytest.raises(type(error)):
            connection.ensure(worker, worker.work)()
        assert worker.calls == 1


@pytest.mark.parametrize("kind", NEVER_REPEATED)
def test_what_may_have_been_done_is_never_repeated(
    connection: Connection, kind: type[BaseException]
) -> None:
    arguments: dict[str, Any] = {"maybe_delivered": True} if kind is PublishTimeout else {}
    worker = Worker(kind("late", **arguments))
    with pytest.raises(kind):
        connection.ensure(worker, worker.work, retry_errors=(OSError, Exception))()
    assert worker.calls == 1


def test_never_repeated_are_the_errors_of_publishing() -> None:
    assert {PublishTimeout, ConnectionBlocked, WrongHub} < set(NEVER_REPEATED)


def test_the_last_error_is_the_cause(connection: Connection) -> None:
    last = OSError("third")
    worker = Worker(OSError("first"), OSError("second"), last)
    with pytest.raises(OperationalError, match="third") as raised:
        connection.ensure(worker, worker.work, max_retries=2, **QUICK)()
    assert raised.value.__cause__ is last
    assert worker.calls == 3


def test_a_persistent_error_does_not_spin(connection: Connection) -> None:
    worker = Worker(*[OSError("again")] * 1000)
    began_at = monotonic()
    with pytest.raises(OperationalError):
        connection.ensure(
            worker,
            worker.work,
            interval_start=0.05,
            interval_step=0,
            interval_max=0.05,
            timeout=1.0,
        )()
    assert 2 < worker.calls <= 2 + (monotonic() - began_at) / 0.05


def test_errback_is_about_connections_and_channels(connection: Connection) -> None:
    notified: list[Any] = []
    lost = RecoverableConnectionError("gone")
    worker = Worker(LookupError("not yet"), lost)
    connection.ensure(
        worker,
        worker.work,
        lambda *args: notified.append(args),
        retry_errors=(LookupError,),
        **QUICK,
    )()
    assert [exc for exc, _ in notified] == [lost]


def test_the_policy_counts_for_reconnecting_too(connection: Connection, script: Script) -> None:
    connection.connect()
    script.otherwise["one"] = REFUSED
    script.link.lose()
    worker = Worker(RecoverableConnectionError("gone"))
    with pytest.raises(OperationalError, match="nobody listens"):
        connection.ensure(worker, worker.work, max_retries=3, **QUICK)()
    assert worker.calls == 1
    assert len(script.attempts) == 1 + 4


def test_a_default_channel_that_could_not_be_opened_is_tried_again(
    connect: Connect, script: Script
) -> None:
    connection = connect(connect_timeout=0.05)
    script.plan("one", *[REFUSED] * 4)
    used: list[str] = []
    worker = Worker()

    def use() -> None:
        used.append(connection.default_channel.use())

    connection.ensure(worker, use, **QUICK)()
    assert used == ["one"]


def test_a_link_that_is_lost_again_before_its_channel_is_open_counts_as_one_more_failure(
    connection: Connection, script: Script
) -> None:
    connection.connect()
    losses = 5

    def lose() -> None:
        nonlocal losses
        if losses:
            losses -= 1
            script.link.lose()

    script.on_channel = lose
    worker = Worker(RecoverableConnectionError("gone"))
    connection.ensure(worker, worker.work, **QUICK)()
    assert worker.calls == 2
    assert worker.channel is connection.default_channel
    losses = 50
    worker = Worker(RecoverableConnectionError("gone"))
    script.link.lose()
    with pytest.raises(OperationalError, match="is gone"):
        connection.ensure(worker, worker.work, max_retries=2, **QUICK)()
    assert worker.calls == 1


def test_an_attempt_that_failed_while_another_greenlet_connected_is_repeated(
    connection: Connection,
) -> None:
    lost = OperationalError("lost as soon as it was open")
    lost.__cause__ = RecoverableConnectionError("lost as soon as it was open")
    worker = Worker(lost)
    connection.connect()
    connection.ensure(worker, worker.work)()
    assert worker.calls == 2


def test_a_killed_caller_leaves_the_others_alone(connection: Connection, script: Script) -> None:
    connection.connect()
    script.otherwise["one"] = REFUSED
    script.link.lose()
    workers = [Worker(RecoverableConnectionError("gone")) for _ in range(10)]
    running = [gevent.spawn(connection.ensure(worker, worker.work, **QUICK)) for worker in workers]
    gevent.sleep(0.05)
    running.pop().kill()
    del script.otherwise["one"]
    gevent.joinall(running, timeout=CAME, raise_error=True)
    assert [worker.calls for worker in workers] == [2] * 9 + [1]
    assert len(script.links) == 2


# -- autoretry -----------------------------------------------------------------------------------


def test_autoretry_goes_on_with_a_new_channel(connection: Connection, script: Script) -> None:
    def function(channel: Channel) -> str:
        return channel.use()

    old = connection.channel()
    script.link.lose()
    value, channel = connection.autoretry(function, old)()
    assert value == "one"
    assert channel is connection.default_channel


def test_autoretry_opens_the_connection_by_its_own_policy(
    connection: Connection, script: Script
) -> None:
    script.otherwise["one"] = REFUSED
    with pytest.raises(OperationalError):
        connection.autoretry(lambda channel: None, max_retries=1, **QUICK)()
    assert len(script.attempts) == 2
