"""Relays, with a broker in memory."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event
from sqlalchemy import create_engine, event
from sqlalchemy.orm import scoped_session, sessionmaker

import greenconn
from greenconn import App, Queue
from greenconn.contrib.outbox.relay import Relay, RelayOptions, has_relays
from greenconn.contrib.outbox.sqlalchemy import Outbox
from greenconn.exceptions import OperationalError
from greenconn.testing import MemoryBroker
from tests.fix_wires import until
from tests.unit.contrib.outbox.conftest import Box

pytestmark = pytest.mark.halved

#: Nothing is found by looking again.
NEVER = 10_000.0
SOON = 60.0


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    with MemoryBroker(declare_by_name=None) as broker:
        yield broker


@pytest.fixture
def start(box: Box) -> Iterator[Callable[..., Relay]]:
    """Starts relays that end with the test."""
    relays: list[Relay] = []

    def begin(**options: Any) -> Relay:
        relay = box.relay(**{"poll_interval": NEVER, **options})
        relays.append(relay)
        relay.start()
        return relay

    yield begin
    for each in relays:
        assert each.stop(SOON)


def write(box: Box, *bodies: Any, queue: Any = "mail", **options: Any) -> list[str]:
    with box.begin() as opened:
        return [box.publish(opened, queue, body, **options) for body in bodies]


def bodies(broker: MemoryBroker, queue: str) -> list[Any]:
    return [each.payload for each in broker.messages(queue)]


def waiting(box: Box) -> int:
    return box.store.backlog().waiting


def test_what_was_committed_is_published(box: Box, broker: MemoryBroker, start: Any) -> None:
    mail = Queue("mail")
    (first,) = write(box, {"n": 1}, queue=mail, headers={"trace": "4b"}, priority=3)
    relay = start()
    until(lambda: broker.count("mail") == 1, SOON)
    # A commit in this process wakes it.
    (second,) = write(box, {"n": 2}, queue=mail)
    until(lambda: not waiting(box), SOON)
    found = broker.messages("mail")
    assert [each.payload for each in found] == [{"n": 1}, {"n": 2}]
    assert [each.properties["message_id"] for each in found] == [first, second]
    assert found[0].headers == {"trace": "4b"}
    assert found[0].properties["priority"] == 3
    assert all(row["sent_ms"] for row in box.rows())
    stats = relay.stats()
    assert stats.pop("oldest") is None
    assert stats == {"waiting": 0, "failing": 0, "sent": 2, "failed": 0, "partitions": 32}


def test_a_savepoint_is_no_commit(broker: MemoryBroker, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/outbox.sqlite")
    # As SQLAlchemy says for savepoints: sqlite3 by itself begins no transaction before one, so that its
    # release is a commit.
    event.listen(engine, "connect", lambda opened, _: setattr(opened, "isolation_level", None))
    event.listen(engine, "begin", lambda opened: opened.exec_driver_sql("BEGIN"))
    outbox = Outbox()
    outbox.create_tables(engine)
    relay = outbox.relay(engine, poll_interval=NEVER)
    relay.start()
    until(lambda: len(relay._partitions.held) == 32, SOON)
    mail = Queue("mail")
    sessions = scoped_session(sessionmaker(engine))
    for number in (1, 2):  # of the same session
        with sessions.begin():
            with sessions.begin_nested():
                outbox.publish(sessions, mail, number)
            gevent.sleep(0.01)
            assert broker.count("mail") == number - 1
        until(lambda: broker.count("mail") == number, SOON)  # noqa: B023
    sessions.remove()
    assert relay.stop(SOON)
    engine.dispose()


def test_what_is_rolled_back_is_not(box: Box, broker: MemoryBroker, start: Any) -> None:
    start()
    mail = Queue("mail")
    with pytest.raises(LookupError), box.begin() as opened:
        box.publish(opened, mail, 1)
        raise LookupError
    write(box, 2, queue=mail)
    until(lambda: broker.count("mail"), SOON)
    assert bodies(broker, "mail") == [2]


def test_a_refused_message_holds_up_its_key_alone(
    box: Box, broker: MemoryBroker, start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    there = Queue("there")
    write(box, "a1", key="a")  # nobody has declared its queue
    write(box, "a2", queue=there, key="a")
    write(box, "b1", "b2", queue=there, key="b")
    write(box, "free", queue=there)
    relay = start(poll_interval=0.05)
    until(lambda: broker.count("there") == 3, SOON)
    assert [each for each in bodies(broker, "there") if each != "free"] == ["b1", "b2"]
    until(lambda: relay.stats()["failing"] == 1, SOON)
    assert relay.stats()["oldest"] >= 0
    row = box.rows()[0]
    assert "Unroutable: queue 'mail' does not exist" in row["error"]
    assert "was refused, attempt 1, again in 1 s" in caplog.text
    Queue("mail")(greenconn.Connection(broker.url)).declare()
    until(lambda: not waiting(box), SOON)
    assert bodies(broker, "mail") == ["a1"]
    assert bodies(broker, "there")[-1] == "a2"
    assert relay.failed >= 1


def test_one_key_is_published_in_order_others_side_by_side(box: Box, start: Any) -> None:
    under_way: Counter[Any] = Counter()
    most: Counter[Any] = Counter()
    published: dict[str, list[int]] = defaultdict(list)

    def publish(target: str, body: bytes, **options: Any) -> None:
        under_way.update([target, "all"])
        for each in (target, "all"):
            most[each] = max(most[each], under_way[each])
        gevent.sleep(0.001)
        under_way.subtract([target, "all"])
        published[target].append(int(body))

    for number in range(20):
        for key in "abc":
            write(box, number, queue=key, key=key)
    write(box, *range(10), queue="free")
    start(publish=publish, concurrency=8, batch_size=25)
    until(lambda: not waiting(box), SOON)
    for key in "abc":
        assert published[key] == list(range(20))
    assert sorted(published["free"]) == list(range(10))
    assert [most[key] for key in "abc"] == [1, 1, 1]
    assert 3 < most["all"] <= 8


def test_nothing_is_counted_while_the_broker_is_away(
    box: Box, start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    published: list[int] = []
    is_away = True

    def publish(target: str, body: bytes, **options: Any) -> None:
        gevent.sleep(0)
        if is_away:
            raise OperationalError("the broker is away")
        published.append(int(body))

    write(box, 1, 2, 3, key="a")
    write(box, 4)
    relay = start(publish=publish)
    until(lambda: caplog.text.count("OperationalError: the broker is away; again in") > 1, SOON)
    assert relay.failed == 0
    is_away = False
    until(lambda: not waiting(box), SOON)
    assert [each for each in published if each != 4] == [1, 2, 3]
    assert {row["attempts"] for row in box.rows()} == {0}


def test_a_message_that_only_takes_too_long_does_not_stop_the_others(box: Box, start: Any) -> None:
    published: list[int] = []

    def publish(target: str, body: bytes, **options: Any) -> None:
        if body == b"1":
            until(lambda: published, SOON)
            raise OperationalError("its queue is away")
        published.append(int(body))

    write(box, 1, 2, 3)
    relay = start(publish=publish)
    until(lambda: relay.stats()["failing"] == 1, SOON)
    assert sorted(published) == [2, 3]
    assert waiting(box) == 1


def test_what_could_not_be_marked_is_marked_later_and_not_published_again(
    box: Box, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[int] = []
    fails = 2
    cls: Any = type(box.store)
    mark_sent = cls.mark_sent

    def failing(self: Any, *arguments: Any) -> None:
        nonlocal fails
        fails -= 1
        if fails >= 0:
            raise OSError("the database is away")
        mark_sent(self, *arguments)

    monkeypatch.setattr(cls, "mark_sent", failing)
    write(box, *range(5))
    start(publish=lambda target, body, **options: published.append(int(body)))
    until(lambda: not waiting(box), SOON)
    assert sorted(published) == list(range(5))


def test_stopping_waits_for_what_is_under_way(box: Box, start: Any) -> None:
    begun, may_end = Event(), Event()
    published: list[int] = []

    def publish(target: str, body: bytes, **options: Any) -> None:
        begun.set()
        may_end.wait()
        published.append(int(body))

    write(box, 1, 2, key="a")
    relay = start(publish=publish)
    assert begun.wait(SOON)
    stopping = gevent.spawn(relay.stop)
    until(lambda: relay._is_stopping, SOON)
    may_end.set()
    assert stopping.get(timeout=SOON) is True
    assert published == [1]
    assert [row["sent_ms"] is None for row in box.rows()] == [False, True]
    assert {each.owner for each in box.store.leases()} == {""}
    assert not relay.is_running
    assert not has_relays()
    assert repr(relay) == "<Relay: stopped, 0 partitions, 1 sent>"
    relay.start()  # the same one, once more
    until(lambda: not waiting(box), SOON)
    assert published == [1, 2]


def test_stopping_in_time(box: Box, start: Any) -> None:
    begun = Event()

    def publish(target: str, body: bytes, **options: Any) -> None:
        begun.set()
        Event().wait()

    write(box, 1)
    relay = start(publish=publish)
    assert begun.wait(SOON)
    assert relay.stop(0.01) is False
    assert not relay.is_running
    assert waiting(box) == 1
    assert {each.owner for each in box.store.leases()} == {""}


def test_several_relays_share(box: Box, start: Any) -> None:
    published: list[tuple[str, int]] = []

    def publisher(name: str) -> Callable[..., None]:
        def publish(target: str, body: bytes, **options: Any) -> None:
            gevent.sleep(0)
            published.append((name, int(body)))

        return publish

    options = {"poll_interval": 0.02, "lease": 1.0}
    relays = [start(publish=publisher(name), **options) for name in "ab"]
    until(lambda: [len(each._partitions.held) for each in relays] == [16, 16], SOON)
    write(box, *range(200))
    until(lambda: not waiting(box), SOON)
    assert sorted(number for _, number in published) == list(range(200))
    assert {name for name, _ in published} == {"a", "b"}
    assert relays[0].stop(SOON)
    until(lambda: len(relays[1]._partitions.held) == 32, SOON)
    write(box, *range(50))
    until(lambda: not waiting(box), SOON)


def test_a_relay_runs_with_an_application(box: Box) -> None:
    app = App()
    sent: list[Any] = []

    @app.consumer("mail")
    def send(body: Any, message: Any) -> None:
        sent.append(body)

    @app.around_publish
    def traced(target: Any, body: Any, headers: dict[str, Any]) -> Iterator[None]:
        headers["trace"] = "4b"
        yield

    relay = app.service(box.relay(publish=app.publish))
    write(box, {"to": "ada"})
    with app.testing() as test:
        assert relay.is_running
        test.run_until_idle()
        assert relay.sent == 1
        assert sent == [{"to": "ada"}]
    assert not relay.is_running


def test_what_is_no_service() -> None:
    nothing: Any = 7
    with pytest.raises(TypeError, match="service must have methods start and stop, got 7"):
        App().service(nothing)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lease": 0}, "relay.lease must be a number of seconds above 0, got 0"),
        ({"batch_size": 0}, "relay.batch_size must be a positive integer, got 0"),
        ({"keep": -1}, "relay.keep must be a number of seconds, at least 0, got -1"),
        ({"publish": 7}, "relay.publish must be a callable, or None, got 7"),
    ],
)
@pytest.mark.pure
def test_wrong_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        RelayOptions(**options)
    assert str(caught.value) == text
