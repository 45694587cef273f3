"""A transport made of kombu's hooks: queues in a dict, looked into by the link."""

from __future__ import annotations

import json
import pickle
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.broker.consuming import WINDOW
from greenconn.exceptions import RecoverableChannelError, RecoverableConnectionError
from greenconn.green.deadline import Deadline
from greenconn.message import Message
from greenconn.transport import hooks, virtual
from greenconn.transport.hooks import HookLink
from tests.fix_wires import until
from tests.forked import holds_in_child
from tests.integration.contract import Store
from tests.tiny_client import TinyClient

NOW, SOON = Deadline(0), 5.0


class Backend:
    """The broker: queues of JSON, and how often it was asked."""

    def __init__(self) -> None:
        self.queues: defaultdict[str, deque[str]] = defaultdict(deque)
        self.asked = 0
        self.error: Exception | None = None
        #: Cleared, a ``get`` waits.
        self.may_answer = Event()
        self.may_answer.set()


class BackendChannel(virtual.Channel):
    """The hooks."""

    backend: Backend

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        self.backend.asked += 1
        self.backend.may_answer.wait()
        if self.backend.error is not None:
            raise self.backend.error
        if not self.backend.queues[queue]:
            raise Empty
        found: dict[str, Any] = json.loads(self.backend.queues[queue].popleft())
        return found

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        self.backend.queues[queue].append(json.dumps(message))

    def _purge(self, queue: str) -> int:
        count = len(self.backend.queues[queue])
        self.backend.queues[queue].clear()
        return count

    def _size(self, queue: str) -> int:
        return len(self.backend.queues[queue])

    def _new_queue(self, queue: str, **kwargs: Any) -> None:
        self.backend.queues[queue]

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return queue in self.backend.queues

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        self.backend.queues.pop(queue, None)


class BackendTransport(virtual.Transport):
    """Looks often."""

    Channel = BackendChannel
    polling_interval = 0.01


@contextmanager
def linked(backend: Backend, kind: type[BackendChannel]) -> Iterator[HookLink]:
    """A link to *backend* with channels of this kind."""

    class Channel(kind):  # type: ignore[misc, valid-type]  # which kind, is an argument
        pass

    class Transport(BackendTransport):
        pass

    Channel.backend = backend
    Transport.Channel = Channel
    link = Transport(TinyClient("backend://")).establish_connection()
    yield link
    backend.may_answer.set()
    backend.error = None
    link.close()
    gevent.sleep(0)


@pytest.fixture
def link(backend: Backend) -> Iterator[HookLink]:
    """A link to ``backend``."""
    with linked(backend, BackendChannel) as link:
        yield link


def opened(link: HookLink) -> BackendChannel:
    """Another channel."""
    made: Any = link.transport.create_channel(link)
    assert isinstance(made, BackendChannel)
    return made


def send(channel: BackendChannel, *bodies: str, queue: str = "q", exchange: str = "") -> None:
    for body in bodies:
        message = channel.prepare_message(body, 3, "text/plain", "utf-8", {"h": 1}, {"cid": "c"})
        channel.basic_publish(message, exchange, queue)


def bodies(backend: Backend, channel: BackendChannel, queue: str = "q") -> list[str]:
    raws = [json.loads(each) for each in backend.queues[queue]]
    return [virtual.Message(raw, channel=channel).body.decode() for raw in raws]


def drain(link: HookLink, got: list[Any], count: int) -> None:
    with gevent.Timeout(SOON):
        while len(got) < count:
            link.drain(Deadline(SOON))


def test_message_goes_in_kombus_envelope(backend: Backend, channel: BackendChannel) -> None:
    send(channel, "{}")
    (raw,) = backend.queues["q"]
    stored = json.loads(raw)
    tag = stored["properties"].pop("delivery_tag")
    assert len(tag) == 36
    assert stored == {
        "body": "e30=",
        "content-encoding": "utf-8",
        "content-type": "text/plain",
        "headers": {"h": 1},
        "properties": {
            "cid": "c",
            "priority": 3,
            "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": "q"},
        },
    }


def test_local_publish_is_seen_before_the_next_look(
    link: HookLink, channel: BackendChannel
) -> None:
    link.store.interval = 100.0
    got: list[Message] = []
    channel.basic_consume("q", callback=got.append)
    with pytest.raises(TimeoutError):
        link.drain(Deadline(0.01))
    send(channel, "x")
    drain(link, got, 1)


def test_nobody_is_asked_without_need(
    backend: Backend, link: HookLink, channel: BackendChannel
) -> None:
    link.store.interval = 0.001
    gevent.sleep(0.01)
    assert backend.asked == 0
    channel.basic_qos(0, 1, False)
    got: list[Message] = []
    tag = channel.basic_consume("q", callback=got.append)
    send(channel, "1", "2")
    drain(link, got, 1)
    asked = backend.asked
    gevent.sleep(0.02)
    assert backend.asked == asked
    got[0].ack()
    drain(link, got, 2)
    got[1].ack()
    gevent.sleep(0.01)
    channel.basic_cancel(tag)
    gevent.sleep(0.01)
    asked = backend.asked
    gevent.sleep(0.02)
    assert backend.asked == asked


def test_message_is_there_while_the_next_look_waits(
    backend: Backend, link: HookLink, channel: BackendChannel
) -> None:
    send(channel, "x")
    get = channel._get

    def get_and_close(queue: str, timeout: float | None = None) -> dict[str, Any]:
        found = get(queue, timeout)
        backend.may_answer.clear()
        return found

    channel._get = get_and_close  # type: ignore[method-assign]
    got: list[Message] = []
    channel.basic_consume("q", callback=got.append)
    drain(link, got, 1)
    until(lambda: backend.asked == 2)
    assert not backend.may_answer.is_set()
    got[0].ack()


def test_unbounded_consumers_have_a_window(
    backend: Backend, link: HookLink, channel: BackendChannel
) -> None:
    got: list[Message] = []
    channel.basic_consume("q", no_ack=True, callback=got.append)
    send(channel, *(str(n) for n in range(2 * WINDOW)))
    until(lambda: len(backend.queues["q"]) == WINDOW)
    gevent.sleep(0.03)
    assert len(backend.queues["q"]) == WINDOW
    drain(link, got, 2 * WINDOW)
    assert [int(each.body) for each in got] == list(range(2 * WINDOW))


def test_busy_link_lets_others_run(link: HookLink, channel: BackendChannel) -> None:
    """A consumer that requeues all it gets keeps the link busy for ever."""
    store = Store()
    channel.basic_consume("q", consumer_tag="tag", no_ack=True, sink=store)

    def again() -> None:
        while True:
            while store:
                send(channel, store.take().body.decode())
            gevent.sleep(0)

    send(channel, *"12345")
    worker = gevent.spawn(again)
    with gevent.Timeout(SOON):
        for _ in range(5):
            gevent.sleep(0.005)
    worker.kill()


def test_message_that_comes_after_the_cancel_goes_back(
    backend: Backend, link: HookLink, channel: BackendChannel
) -> None:
    send(channel, "x")
    backend.may_answer.clear()
    channel.basic_consume("q", consumer_tag="tag", callback=print)
    until(lambda: backend.asked)
    channel.basic_cancel("tag")
    backend.may_answer.set()
    until(lambda: any("redelivered" in each for each in backend.queues["q"]))
    assert bodies(backend, channel) == ["x"]
    assert json.loads(backend.queues["q"][0])["redelivered"]


def test_close_does_not_wait_for_a_hook_that_waits_for_ever(
    backend: Backend, link: HookLink, channel: BackendChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "POLL_TIMEOUT", 0.01)
    monkeypatch.setattr(HookLink, "close_timeout", None)  # the usual end of a close
    backend.may_answer.clear()
    channel.basic_consume("q", callback=print)
    until(lambda: backend.asked)
    lost: list[BaseException] = []
    link.on_lost = lost.append
    with gevent.Timeout(SOON):
        link.close()
    gevent.sleep(0)
    assert not link.is_open
    assert lost == []


def test_lost_link_leaves_the_rest_to_the_broker(
    backend: Backend, link: HookLink, channel: BackendChannel
) -> None:
    got: list[Message] = []
    channel.basic_consume("q", callback=got.append)
    send(channel, "x")
    drain(link, got, 1)
    backend.error = OSError("cut")
    with pytest.raises(RecoverableConnectionError, match="cut"):
        link.drain(Deadline(SOON))
    assert not link.is_open
    assert not channel.is_open
    got[0].ack()  # nothing happens
    assert bodies(backend, channel) == []


def test_child_of_a_fork_does_not_ask(
    backend: Backend, link: HookLink, channel: BackendChannel
) -> None:
    channel.basic_consume("q", callback=print)
    until(lambda: backend.asked)
    assert holds_in_child(lambda: not link.is_open and not link.store.is_waiting)
    assert link.is_open


def test_queue_of_last_resort(backend: Backend, link: HookLink) -> None:
    link.client.transport_options["deadletter_queue"] = "rest"
    link.client.transport_options["body_encoding"] = None
    channel = opened(link)
    with pytest.warns(virtual.UndeliverableWarning, match="amq.direct"):
        send(channel, "x", exchange="amq.direct", queue="nowhere")
    assert json.loads(backend.queues["rest"][0])["body"] == "x"


def test_names_that_kombus_transports_use(channel: BackendChannel) -> None:
    channel.exchange_declare("x", "topic")
    channel.queue_bind("q", "x", "a.*")
    assert channel.get_table("x") == [("a.*", r"^a\.[^\.]+$", "q")]
    assert channel.typeof("x").type == "topic"
    assert channel.typeof("unknown").type == "direct"
    assert channel._lookup("x", "a.b") == ("q",)
    assert channel._lookup("", "q") == ["q"]
    assert "x" in channel.get_exchanges()
    assert channel.encode_body("x", "base64") == ("eA==", "base64")
    assert channel.decode_body("eA==", "base64") == b"x"
    message = channel.prepare_message("x", 20)
    assert channel._get_message_priority(message) == 9
    assert channel._get_message_priority(message, reverse=True) == 0
    assert channel._get_message_priority({"properties": {}}) == 0
    raw = {"body": "eA==", "properties": {"body_encoding": "base64", "delivery_tag": "t"}}
    assert channel.message_to_python(raw).body == b"x"
    assert isinstance(virtual.QoS(channel, 2), type(channel.qos))


class SharedTable(BackendChannel):
    """Bindings are kept elsewhere, and so is fan-out."""

    supports_fanout = True
    rows: list[tuple[str, Any, str]]
    broadcast: list[Any]

    def _queue_bind(self, exchange: str, routing_key: str, pattern: Any, queue: str) -> None:
        self.rows.append((routing_key, pattern, queue))

    def get_table(self, exchange: str) -> list[tuple[str, Any, str]]:
        if exchange == "unknown":
            raise KeyError(exchange)
        return self.rows

    def _put_fanout(self, exchange: str, message: Any, routing_key: str, **kwargs: Any) -> None:
        self.broadcast.append((exchange, routing_key))


def test_bindings_may_be_kept_elsewhere(backend: Backend, link: HookLink) -> None:
    channel = SharedTable(link)
    channel.backend, channel.rows, channel.broadcast = backend, [], []
    channel.exchange_declare("x", "topic")
    channel.queue_bind("q", "x", "a.#")
    assert channel.rows == [("a.#", r"^a\..*?$", "q")]
    channel.rows.append(("#", None, "theirs"))
    send(channel, "x", exchange="x", queue="a")
    assert [len(backend.queues[name]) for name in ("q", "theirs")] == [1, 1]
    send(channel, "x", exchange="unknown", queue="a")
    send(channel, "x", exchange="amq.fanout", queue="key")
    assert channel.broadcast == [("amq.fanout", "key")]
    assert channel._lookup("x", "a", "default") == {"q", "theirs"}


def test_unacked_deliveries_are_counted(channel: BackendChannel) -> None:
    qos = virtual.QoS(channel, 2)
    assert qos.can_consume()
    assert qos.can_consume_max_estimate() == 2
    for tag in "ab":
        qos.append(tag.upper(), tag)
    assert not qos.can_consume()
    assert qos.can_consume_max_estimate() == 0
    assert qos.get("a") == "A"
    qos.restore_visible()
    qos.ack("a")
    assert qos.can_consume()
    assert virtual.QoS(channel).can_consume_max_estimate() is None


def dumped(folder: Path, channel: BackendChannel) -> list[Any]:
    (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    return [channel.message_to_python(each).body for each in pickle.loads(path.read_bytes())]


def test_what_cannot_be_restored_is_dumped(
    backend: Backend, channel: BackendChannel, dumps: Path, caplog: pytest.LogCaptureFixture
) -> None:
    send(channel, "secret")
    assert channel.basic_get("q") is not None
    channel._restore = fail  # type: ignore[method-assign]
    with caplog.at_level("INFO"):
        channel.close()
    assert "1 unacknowledged message(s) could not be restored" in caplog.text
    assert "secret" not in caplog.text
    assert dumped(dumps, channel) == [b"secret"]
    assert channel.qos._delivered.restored


def test_what_nobody_has_seen_and_no_queue_takes_is_dumped(
    backend: Backend, link: HookLink, channel: BackendChannel, dumps: Path
) -> None:
    for body in "abc":
        send(channel, body)
    channel.basic_consume("q", callback=fail)
    until(lambda: len(link.events) == 3)
    channel._restore = fail  # type: ignore[method-assign]
    channel.end(RecoverableChannelError("lost"))
    until(lambda: any(dumps.iterdir()))
    assert sorted(dumped(dumps, channel)) == [b"a", b"b", b"c"]


def test_a_dump_that_fails_is_logged(
    backend: Backend, channel: BackendChannel, dumps: Path, caplog: pytest.LogCaptureFixture
) -> None:
    send(channel, "x")
    assert channel.basic_get("q") is not None
    channel._restore = fail  # type: ignore[method-assign]
    dumps.rmdir()
    channel.close()
    assert "1 message(s) could not be dumped, and are lost" in caplog.text


def fail(message: Any) -> None:
    raise OSError("gone")


def test_management_lists_bindings(link: HookLink, channel: BackendChannel) -> None:
    channel.queue_bind("q", "amq.direct", "k")
    client: Any = link.client
    client.channel = lambda: link.transport.create_channel(link)
    manager: Any = link.transport.manager
    assert manager.get_bindings() == [
        {"destination": "q", "source": "amq.direct", "routing_key": "k"}
    ]
    manager.close()
