"""Producers: what they hand to a channel, and which channel."""

from __future__ import annotations

import json
import pickle
import zlib
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.entity import Exchange, Queue
from greenconn.exceptions import (
    EncodeError,
    NotBoundError,
    OperationalError,
    PublishTimeout,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from greenconn.messaging import Producer
from tests.unit.fake_channel import FakeChannel, FakeClient, outcome


def published(channel: FakeChannel) -> list[dict[str, Any]]:
    """The arguments of all publishes of *channel*."""
    return [call.arguments for call in channel.of("basic_publish")]


# What is published


@pytest.mark.parametrize("expiration", ["soon", "5", -1, float("nan"), float("inf"), True])
def test_an_expiration_that_no_message_can_have_is_refused(
    channel: FakeChannel, expiration: Any
) -> None:
    refusal = f"expiration must be a number of seconds, at least 0, got {expiration!r}"
    with pytest.raises(ValueError, match=refusal):
        Producer(channel).publish({}, "key", expiration=expiration)
    assert published(channel) == []


def test_publish_with_everything(channel: FakeChannel) -> None:
    headers = {"h": 1}
    producer = Producer(channel, auto_declare=False)
    producer.publish(
        "hällo",
        "key",
        delivery_mode="transient",
        mandatory=True,
        immediate=True,
        priority=3,
        serializer="json",
        headers=headers,
        compression="zlib",
        exchange="e",
        expiration=1.5,
        confirm_timeout=4.0,
        correlation_id="c",
        reply_to="r",
    )
    [arguments] = published(channel)
    message = arguments.pop("message")
    assert arguments == {
        "exchange": "e",
        "routing_key": "key",
        "mandatory": True,
        "immediate": True,
        "timeout": None,
        "confirm_timeout": 4.0,
    }
    assert json.loads(zlib.decompress(message["body"])) == "hällo"
    assert message["priority"] == 3
    assert message["headers"] == {"h": 1, "compression": "application/x-gzip"}
    assert headers == {"h": 1}
    assert message["properties"] == {
        "delivery_mode": 1,
        "expiration": "1500",
        "correlation_id": "c",
        "reply_to": "r",
    }


def test_publish_takes_the_producers_defaults(channel: FakeChannel) -> None:
    exchange = Exchange("e", delivery_mode=1)
    producer = Producer(channel, exchange, "key", "yaml", compression="bzip2")
    producer.publish({"a": 1})
    producer.publish({"a": 1}, routing_key="", serializer="json", compression="")
    first, second = published(channel)
    assert (first["exchange"], first["routing_key"]) == ("e", "key")
    assert first["message"]["content_type"] == "application/x-yaml"
    assert first["message"]["headers"] == {"compression": "application/x-bz2"}
    assert first["message"]["properties"] == {"delivery_mode": 1}
    assert second["routing_key"] == ""
    assert second["message"]["content_type"] == "application/json"
    assert second["message"]["headers"] == {}


@pytest.mark.parametrize(
    ("body", "encoding", "sent"),
    [
        ("ä", None, ("utf-8", "ä".encode())),
        ("ä", "latin-1", ("latin-1", b"\xe4")),
        (b"ab", None, ("binary", b"ab")),
        (b"ab", "ascii", ("ascii", b"ab")),
    ],
)
def test_a_body_with_content_type_is_sent_as_it_is(
    channel: FakeChannel, body: Any, encoding: str | None, sent: tuple[str, bytes]
) -> None:
    Producer(channel).publish(body, content_type="text/x", content_encoding=encoding)
    message = published(channel)[0]["message"]
    assert message["content_type"] == "text/x"
    assert (message["content_encoding"], message["body"]) == sent


def test_a_body_that_cannot_be_encoded_is_not_published(channel: FakeChannel) -> None:
    with pytest.raises(EncodeError):
        Producer(channel).publish(object())
    assert channel.calls == []


def test_reply_to_may_be_a_queue_that_the_broker_names(channel: FakeChannel) -> None:
    queue = Queue("", exclusive=True)(channel)
    Producer(channel).publish("", "k", reply_to=queue, declare=[queue])
    assert channel.methods == ["queue_declare", "basic_publish"]
    assert published(channel)[0]["message"]["properties"]["reply_to"] == queue.name != ""


# Declaring


def test_the_exchange_is_declared_once_in_a_life(client: FakeClient) -> None:
    producer = Producer(client, Exchange("e"))
    producer.publish("1")
    producer.publish("2")
    assert client.default_channel.methods == ["exchange_declare"] + ["basic_publish"] * 2
    assert client.link is not None
    client.link.lose()
    producer.publish("3")
    assert client.default_channel.methods == ["exchange_declare", "basic_publish"]
    client.declared_entities.clear()
    producer.publish("4")
    assert client.default_channel.methods[2:] == ["exchange_declare", "basic_publish"]


def test_an_exchange_that_may_go_is_declared_each_time(channel: FakeChannel) -> None:
    producer = Producer(channel, Exchange("e", auto_delete=True))
    producer.publish("1")
    producer.publish("2")
    assert channel.methods == ["exchange_declare", "basic_publish"] * 2


@pytest.mark.parametrize(
    "options",
    [
        {"exchange": "e"},
        {"exchange": Exchange("")},
        {"exchange": Exchange("e"), "auto_declare": False},
    ],
)
def test_what_is_not_to_be_declared(channel: FakeChannel, options: dict[str, Any]) -> None:
    Producer(channel, **options).publish("1")
    assert channel.methods == ["basic_publish"]


def test_auto_declare_and_exchange_may_be_changed(channel: FakeChannel) -> None:
    producer = Producer(channel, Exchange("e"))
    producer.auto_declare = False
    producer.publish("1")
    producer.auto_declare = True
    producer.exchange = Exchange("f")
    producer.publish("2")
    assert channel.methods == ["basic_publish", "exchange_declare", "basic_publish"]
    assert published(channel)[1]["exchange"] == "f"


class Feed(Producer):
    """Its class has an exchange, as those of kombu.compat have; kombu's own producers ignore it."""

    exchange: Any = Exchange("of-class")


class Nameless(Producer):
    """As kombu's class says it."""

    exchange: Any = None


class Mixed(Nameless, Feed):
    """The first of two such classes counts."""


class Kept(Producer):
    """Keeps its exchange itself."""

    kept: Any = None

    @property
    def exchange(self) -> Any:
        """The exchange."""
        return self.kept

    @exchange.setter
    def exchange(self, exchange: Any) -> None:
        self.kept = exchange


@pytest.mark.parametrize("kind", [Producer, Feed, Nameless, Mixed, Kept])
def test_an_exchange_that_is_given_is_published_to_whatever_the_class_has(
    channel: FakeChannel, kind: type[Producer]
) -> None:
    for given in (Exchange("e", delivery_mode=1), "e"):
        producer = kind(channel, given)
        assert producer.exchange.name == "e"
        assert producer.exchange.channel is channel
        producer.publish({}, "key")
        producer.exchange = Exchange("f")(channel)
        producer.publish({}, "key")
        producer.publish({}, "key", timeout=20.0)
        assert producer.exchange.name == "f"
        again = pickle.loads(pickle.dumps(producer))
        assert again.exchange == Exchange("f")
        again.revive(channel)
        again.publish({}, "key")
    names = [each["exchange"] for each in published(channel)]
    assert names == ["e", "f", "f", "f"] * 2
    modes = [each["message"]["properties"]["delivery_mode"] for each in published(channel)]
    assert modes[0] == 1


@pytest.mark.parametrize("kind", [Producer, Feed, Nameless, Mixed, Kept])
def test_without_an_exchange_it_is_the_default_exchange_whatever_the_class_has(
    channel: FakeChannel, kind: type[Producer]
) -> None:
    producer = kind(channel)
    producer.publish({}, "key")
    assert producer.exchange == Exchange("")
    assert producer.exchange.channel is channel
    assert producer.exchange is producer.exchange
    producer.publish({}, "key")
    other = FakeClient().default_channel
    producer.revive(other)
    assert producer.exchange.channel is other
    assert [each["exchange"] for each in published(channel)] == ["", ""]
    assert kind(channel).exchange is not producer.exchange


def test_declare_list_comes_before_the_exchange(channel: FakeChannel) -> None:
    queue = Queue("q", Exchange("other"), "k")
    wanted = [queue]
    producer = Producer(channel, Exchange("e"))
    producer.publish("1", declare=wanted)
    producer.publish("2", declare=wanted)
    assert wanted == [queue]
    assert [call.arguments.get("exchange") for call in channel.of("exchange_declare")] == [
        "other",
        "e",
    ]
    assert channel.methods == [
        *("exchange_declare", "queue_declare", "queue_bind", "exchange_declare", "basic_publish"),
        "basic_publish",
    ]


def test_a_thousand_publishing_greenlets_declare_once(channel: FakeChannel) -> None:
    go = Event()
    channel.script["exchange_declare"] = lambda: go.wait(30.0)
    producer = Producer(channel, Exchange("e"))
    publishing = [gevent.spawn(producer.publish, {"n": number}) for number in range(1000)]
    gevent.idle()
    assert channel.methods == ["exchange_declare"]
    go.set()
    gevent.joinall(publishing, timeout=10.0, raise_error=True)
    assert channel.methods == ["exchange_declare"] + ["basic_publish"] * 1000
    assert {json.loads(each["message"]["body"])["n"] for each in published(channel)} == set(
        range(1000)
    )


# The channel


def test_a_producer_of_a_connection_opens_nothing_before_it_publishes(client: FakeClient) -> None:
    producer = Producer(client, Exchange("e"))
    assert producer.connection is client
    assert client.lives == 0
    producer.publish("1")
    assert client.lives == 1
    assert producer.channel is client.default_channel
    assert producer.exchange.channel is client.default_channel


def test_a_producer_of_a_connection_follows_the_default_channel(client: FakeClient) -> None:
    producer = Producer(client)
    producer.publish("1")
    client.default_channel.end(RecoverableChannelError("404"))
    producer.publish("2")
    assert client.link is not None
    client.link.lose()
    producer.publish("3")
    assert [len(published(each)) for each in client.defaults] == [1, 1, 1]
    assert client.lives == 2


def test_a_producer_of_a_channel_takes_its_successor(client: FakeClient) -> None:
    channel = client.channel()
    first, second = Producer(channel), Producer(channel)
    assert first.connection is client
    channel.connection.lose()
    first.publish("1")
    second.publish("2")
    assert first.channel is second.channel
    assert len(published(first.channel)) == 2


def test_a_producer_of_a_channel_closed_by_an_error_raises_it(channel: FakeChannel) -> None:
    producer = Producer(channel)
    channel.end(RecoverableChannelError("406 of somebody"))
    for _ in range(2):
        with pytest.raises(RecoverableChannelError, match="406 of somebody"):
            producer.publish("1")


def test_without_a_session_a_lost_channel_raises() -> None:
    client = FakeClient(has_session=False)
    producer = Producer(client.channel())
    assert client.link is not None
    client.link.lose()
    with pytest.raises(RecoverableConnectionError):
        producer.publish("1")
    producer.revive(client.channel())
    producer.publish("2")


def test_on_return_listens_on_each_channel(client: FakeClient) -> None:
    def on_return(*args: Any) -> None: ...

    producer = Producer(client, on_return=on_return)
    assert client.lives == 0
    producer.publish("1")
    assert client.default_channel.events["basic_return"] == {on_return}
    client.default_channel.close()
    producer.publish("2")
    assert client.default_channel.events["basic_return"] == {on_return}
    explicit = client.channel()
    Producer(explicit, on_return=on_return)
    assert explicit.events["basic_return"] == {on_return}


def test_a_producer_without_a_channel(client: FakeClient, channel: FakeChannel) -> None:
    producer = Producer(None, Exchange("e"))
    assert producer.channel is None
    assert producer.connection is None
    with pytest.raises(NotBoundError):
        producer.publish("1")
    producer.revive(channel)
    producer.publish("2")
    producer.channel = None  # as a pool does when it takes the producer back
    with pytest.raises(NotBoundError):
        producer.publish("3")


def test_release_while_the_channel_is_opened_is_not_undone(client: FakeClient) -> None:
    producer = Producer(client)
    go = Event()

    class Slow(FakeClient):
        @property
        def default_channel(self) -> FakeChannel:
            go.wait(30.0)
            return super().default_channel

    producer.revive(Slow())
    publishing = gevent.spawn(outcome, producer.publish, "1")
    gevent.idle()
    producer.channel = None
    go.set()
    publishing.get(timeout=30.0)
    assert producer._channel is None


def test_channels_written_for_kombu_take_options_as_keywords(client: FakeClient) -> None:
    class Foreign(FakeChannel):
        def basic_publish(
            self, message: Any, exchange: str = "", routing_key: str = "", *args: Any, **kwargs: Any
        ) -> Any:
            return (exchange, routing_key, kwargs["mandatory"])

    producer = Producer(Foreign(client.reconnect()))
    assert producer.publish("1", "k", mandatory=True) == ("", "k", True)


# Batches, the with block, pools


class HeldBack:
    """What a channel of another kind holds back."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.bodies: list[Any] = []
        self.calls: list[str] = []

    def publish(self, message: Any, **kwargs: Any) -> str:
        self.bodies.append(message["body"])
        return "held back"

    def flush(self) -> None:
        self.calls.append("flush")

    def discard(self) -> None:
        self.calls.append("discard")

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def held(channel: FakeChannel) -> HeldBack:
    """Give *channel* the hook of kombu 5.7."""
    held = HeldBack(channel)
    channel.create_publish_batch = lambda max_size: held  # type: ignore[attr-defined]
    return held


def test_a_channel_may_hold_a_batch_back(channel: FakeChannel, held: HeldBack) -> None:
    producer = Producer(channel)
    with producer.batch(max_size=2) as batch:
        assert producer.publish("1") == "held back"
        batch.flush()
        with producer.batch():
            producer.publish("2")
        other = gevent.spawn(producer.publish, "of another greenlet")
        other.get(timeout=30)
    assert len(published(channel)) == 1
    assert held.bodies == [b"1", b"2"]
    assert held.calls == ["flush", "flush", "close"]
    producer.publish("3")
    assert len(published(channel)) == 2
    assert producer.batches is None


def test_what_is_held_back_is_discarded_after_an_error(
    channel: FakeChannel, held: HeldBack
) -> None:
    producer = Producer(channel)
    with producer.batch():
        producer.publish("1")
        with pytest.raises(KeyError), producer.batch():
            raise KeyError
        with pytest.raises(RuntimeError, match="aborted"):
            producer.publish("2")
    assert held.calls == ["discard", "close"]
    held.flush = lambda: pytest.fail("flushed")  # type: ignore[method-assign]
    with pytest.raises(gevent.GreenletExit), producer.batch():
        producer.publish("3")
        raise gevent.GreenletExit


class PooledClient(FakeClient):
    """A connection that a pool lent, and that pool."""

    replaced = 0

    @property
    def _pool(self) -> PooledClient:
        return self

    def replace(self, connection: object) -> None:
        assert connection is self
        self.replaced += 1


@pytest.mark.parametrize("has_session", [True, False])
def test_leaving_with_an_error_replaces_a_broken_pooled_connection(has_session: bool) -> None:
    client = PooledClient(has_session=has_session)
    with Producer(client) as producer:
        producer.publish("1")
    assert client.replaced == 0
    assert client.link is not None
    client.link.lose()
    with pytest.raises(RuntimeError), Producer(client):
        raise RuntimeError
    assert client.replaced == 1


@pytest.mark.parametrize("error", [RuntimeError, gevent.GreenletExit])
def test_leaving_with_an_error_keeps_a_whole_pooled_connection(error: type[BaseException]) -> None:
    client = PooledClient()
    with pytest.raises(error), Producer(client) as producer:
        producer.publish("1")
        raise error
    assert client.replaced == 0


def test_a_pooled_connection_that_was_released_is_left_alone() -> None:
    class Expired(PooledClient):
        def __getattr__(self, name: str) -> Any:
            raise OperationalError("given back") if name == "session" else AttributeError(name)

    client = Expired(has_session=False)
    with pytest.raises(RuntimeError), Producer(client):
        raise RuntimeError
    assert client.replaced == 0


# Retries and deadlines


def lose_once(channel: FakeChannel) -> None:
    """Lose the link of *channel* at the next publish."""

    def lose() -> None:
        del channel.script["basic_publish"]
        channel.connection.lose()
        raise RecoverableConnectionError("lost")

    channel.script["basic_publish"] = lose


def test_retry_costs_no_ensure_while_all_is_well(client: FakeClient) -> None:
    Producer(client).publish("1", retry=True, retry_policy={"max_retries": 3})
    assert client.ensured == []
    assert client.ensured_connection == [{"max_retries": 3}]


@pytest.mark.parametrize("kind", ["connection", "channel"])
def test_retry_publishes_again_on_the_new_life(client: FakeClient, kind: str) -> None:
    channel = client.default_channel
    producer = Producer(client if kind == "connection" else client.channel(), Exchange("e"))
    producer.publish("0")
    channel = producer.channel
    lose_once(channel)
    policy = {"max_retries": 3, "interval_start": 0, "errback": None}
    producer.publish("1", retry=True, retry_policy=policy, timeout=5.0)
    assert client.lives == 2
    assert producer.channel.methods == ["exchange_declare", "basic_publish"]
    [ensured] = client.ensured
    assert (ensured["max_retries"], ensured["interval_start"]) == (3, 0)
    assert client.transport_options == {}
    [arguments] = published(producer.channel)
    assert 4.0 < arguments["timeout"] <= 5.0


def test_retries_count_the_first_attempt(client: FakeClient) -> None:
    tries = []

    class Lossy(FakeClient):
        @property
        def default_channel(self) -> FakeChannel:
            channel = super().default_channel

            def lose() -> None:
                tries.append(channel)
                assert channel.connection is not None
                channel.connection.lose()
                raise RecoverableConnectionError("lost")

            channel.script["basic_publish"] = lose
            return channel

    with pytest.raises(RecoverableConnectionError):
        Producer(Lossy()).publish("1", retry=True, retry_policy={"max_retries": 2})
    assert len(tries) == 3


def test_retry_of_a_producer_whose_channel_cannot_be_replaced() -> None:
    client = FakeClient(has_session=False)
    producer = Producer(client.channel())
    lose_once(producer.channel)
    producer.publish("1", retry=True)
    assert producer.channel is client.default_channel
    closed = client.channel()
    other = Producer(closed)
    closed.end(RecoverableChannelError("406"))
    other.publish("2", retry=True)
    assert len(published(client.default_channel)) == 2


def test_retry_does_not_swallow_other_errors(channel: FakeChannel) -> None:
    def refuse() -> None:
        raise OperationalError("refused")

    channel.script["basic_publish"] = refuse
    with pytest.raises(OperationalError, match="refused"):
        Producer(channel).publish("1", retry=True)


def test_a_publish_without_wait_hands_its_timeout_on(channel: FakeChannel) -> None:
    Producer(channel).publish("1", timeout=60.0, confirm_timeout=2.0)
    [arguments] = published(channel)
    assert 30.0 < arguments["timeout"] <= 60.0
    assert arguments["confirm_timeout"] == 2.0


def test_the_timeout_covers_connecting() -> None:
    never = Event()

    class Away(FakeClient):
        @property
        def default_channel(self) -> FakeChannel:
            never.wait(5.0)
            raise AssertionError

    with pytest.raises(
        PublishTimeout, match=r"longer than 0.05 s; the message was not sent"
    ) as caught:
        Producer(Away()).publish("1", "key", timeout=0.05)
    assert not caught.value.maybe_delivered


def test_the_timeout_covers_declaring(channel: FakeChannel) -> None:
    go = Event()
    channel.script["exchange_declare"] = lambda: go.wait(30.0)
    with pytest.raises(PublishTimeout) as caught:
        Producer(channel, Exchange("e")).publish("1", timeout=0.05)
    assert not caught.value.maybe_delivered
    assert channel.methods == ["exchange_declare"]
    go.set()


def test_the_timeout_covers_the_retries() -> None:
    class Slow(FakeClient):
        def ensure(self, obj: Any, fun: Any, *args: Any, **policy: Any) -> Any:
            def ensured() -> None:
                with pytest.raises(RecoverableConnectionError):
                    fun()
                gevent.sleep(5.0)

            return ensured

    client = Slow()
    lose_once(client.default_channel)
    with pytest.raises(PublishTimeout, match="the broker may have the message") as caught:
        Producer(client).publish("2", retry=True, timeout=0.05)
    assert caught.value.maybe_delivered


def test_the_callers_own_timeout_passes_through(channel: FakeChannel) -> None:
    go = Event()
    channel.script["exchange_declare"] = lambda: go.wait(30.0)
    producer = Producer(channel, Exchange("e"))
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.02) as own:
        producer.publish("1", timeout=4.0)
    assert caught.value is own
    go.set()


def test_a_killed_publisher_leaves_the_producer_whole(client: FakeClient) -> None:
    go = Event()
    channel = client.default_channel
    channel.script["exchange_declare"] = lambda: go.wait(30.0)
    producer = Producer(client, Exchange("e"))
    killed = gevent.spawn(producer.publish, "1", timeout=4.0)
    gevent.idle()
    killed.kill()
    go.set()
    producer.publish("2")
    assert channel.methods == ["exchange_declare", "basic_publish"]
