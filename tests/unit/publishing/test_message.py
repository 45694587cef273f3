"""Options of publish: checked once, each complaint naming what is wrong."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from greenconn.entity import Exchange, Queue
from greenconn.exceptions import SerializerNotInstalled
from greenconn.green.deadline import Deadline
from greenconn.publishing.publisher import ELSEWHERE, OPTIONS, PROPERTIES, PublishOptions

QUEUE = "mail"


def publish_options(target: Any = QUEUE, **options: Any) -> PublishOptions:
    """What the messages of a call with these options have in common."""
    return PublishOptions(target, options)


def test_an_exchange_says_how_its_messages_are_kept() -> None:
    exchange = Exchange("events", delivery_mode="transient")
    assert publish_options(exchange).properties["delivery_mode"] == 1
    assert publish_options(exchange, delivery_mode=2).properties["delivery_mode"] == 2


@pytest.mark.parametrize(
    ("target", "options", "address"),
    [
        ("mail", {}, ("", "mail")),
        (Queue("mail", exchange=Exchange("x"), routing_key="k"), {}, ("", "mail")),
        (Exchange("events"), {"routing_key": "user.new"}, ("events", "user.new")),
        (Exchange("events"), {}, ("events", "")),
        (Exchange(""), {"routing_key": "mail"}, ("", "mail")),
    ],
)
def test_where_a_message_goes(target: Any, options: Any, address: tuple[str, str]) -> None:
    common = PublishOptions(target, options)
    assert (common.exchange, common.routing_key) == address


@pytest.mark.parametrize(
    ("target", "kind", "text"),
    [
        ("", ValueError, "must have a name"),
        (Queue(), ValueError, "must have a name"),
        (b"mail", TypeError, "target must be the name of a queue"),
        (None, TypeError, "target must be the name of a queue"),
        (5, TypeError, "target must be the name of a queue"),
        ("q" * 256, ValueError, "255 bytes"),
        ("ä" * 128, ValueError, "255 bytes"),
    ],
)
def test_wrong_targets(target: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        publish_options(target)


def test_names_may_have_255_bytes() -> None:
    assert publish_options("q" * 255).routing_key == "q" * 255
    assert publish_options("ä" * 127).routing_key == "ä" * 127


@pytest.mark.parametrize(
    ("option", "value", "kind", "text"),
    [
        ("prority", 1, TypeError, "did you mean 'priority'"),
        ("xyz", 1, TypeError, "known: app_id"),
        ("exchange", "x", TypeError, "pass the Exchange as target"),
        ("retry", True, TypeError, "publish retries by itself"),
        ("routing_key", "k", ValueError, "must be None .* whose name it is .* got 'k'"),
        ("priority", 256, ValueError, "0 to 255"),
        ("priority", "high", ValueError, "0 to 255"),
        ("delivery_mode", "persitent", ValueError, "did you mean 'persistent'"),
        ("delivery_mode", 3, ValueError, "1 or 'transient'"),
        ("expiration", -1, ValueError, "seconds, at least 0"),
        ("expiration", "10", ValueError, "seconds, at least 0"),
        ("expiration", float("nan"), ValueError, "seconds, at least 0"),
        ("headers", ["a"], TypeError, "a mapping with text as keys"),
        ("headers", {1: 2}, TypeError, "a mapping with text as keys"),
        ("content_type", 5, TypeError, "content_type must be text, got 5"),
        ("message_id", 5, TypeError, "message_id must be text, got 5"),
        ("message_id", "m" * 256, ValueError, "255 bytes"),
        ("timestamp", "now", ValueError, "a datetime"),
    ],
)
def test_wrong_options_are_named(option: str, value: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        publish_options(**{option: value})


def test_every_option_is_taken() -> None:
    moment = datetime(2030, 1, 2)
    common = publish_options(
        Exchange("x"),
        routing_key="k",
        priority=3,
        expiration=1.5,
        headers={"a": 1},
        app_id="app",
        cluster_id="cluster",
        correlation_id="c",
        message_id="m",
        reply_to=Queue("replies"),
        timestamp=moment,
        type="t",
        user_id="u",
    )
    assert common.priority == 3
    assert common.headers == {"a": 1}
    assert common.properties == {
        "delivery_mode": 2,
        "expiration": "1500",
        "app_id": "app",
        "cluster_id": "cluster",
        "correlation_id": "c",
        "message_id": "m",
        "reply_to": "replies",
        "timestamp": moment,
        "type": "t",
        "user_id": "u",
    }


def test_what_producers_take_and_this_does_not_is_explained() -> None:
    assert not ELSEWHERE.keys() & (OPTIONS | PROPERTIES)


@pytest.mark.parametrize(
    ("body", "options", "content"),
    [
        ({"a": 1}, {}, ("application/json", "utf-8")),
        ("text", {}, ("text/plain", "utf-8")),
        (b"bytes", {}, ("application/data", "binary")),
        ("<a/>", {"content_type": "text/xml"}, ("text/xml", "utf-8")),
        (b"\xff", {"content_type": "image/png"}, ("image/png", "binary")),
        ("ä", {"content_type": "text/xml", "content_encoding": "latin-1"}, ("text/xml", "latin-1")),
    ],
)
def test_content_types(body: Any, options: Any, content: tuple[str, str]) -> None:
    message = publish_options(**options).message(body)
    assert (message.content_type, message.content_encoding) == content
    assert isinstance(message.body, (bytes, str))


def test_a_body_that_is_said_to_be_serialised_must_be() -> None:
    with pytest.raises(TypeError, match="got dict"):
        publish_options(content_type="application/json").message({})


def test_compression_is_noted_in_the_headers_of_that_message_only() -> None:
    common = publish_options(compression="gzip", headers={"a": 1})
    message = common.message({"b": 2})
    assert message.headers == {"a": 1, "compression": "application/x-gzip"}
    assert common.headers == {"a": 1}


def test_unknown_compressions_and_serializers() -> None:
    with pytest.raises(ValueError, match="gzpi"):
        publish_options(compression="gzpi").message("x")
    with pytest.raises(SerializerNotInstalled, match="jsno"):
        publish_options(serializer="jsno").message("x")


class KombuChannel:
    """A channel that is made for kombu: it has no ``begin_publish``."""

    def __init__(self, error: Exception | None = None) -> None:
        self.published: list[dict[str, Any]] = []
        self._error = error

    def prepare_message(self, body: Any, *arguments: Any) -> Any:
        return body

    def basic_publish(self, message: Any, **options: Any) -> None:
        if self._error is not None:
            raise self._error
        self.published.append({"message": message, **options})


def test_a_publish_over_a_channel_of_kombu_is_done_when_it_returns() -> None:
    channel: Any = KombuChannel()
    first, second = (publish_options(mandatory=False).message(body) for body in ("1", "2"))
    for message in (first, second):
        for deadline in (Deadline(0), Deadline()):  # a result that is there needs no time
            message.begin(channel, deadline).wait(deadline)
        assert message.maybe_delivered
    assert channel.published[0] == {
        "message": first.body,
        "exchange": "",
        "routing_key": QUEUE,
        "mandatory": False,
    }
    assert len(channel.published) == 4


def test_a_channel_of_kombu_that_fails_may_have_sent_it() -> None:
    message = publish_options().message("1")
    channel: Any = KombuChannel(OSError("gone"))
    with pytest.raises(OSError, match="gone"):
        message.begin(channel, Deadline())
    assert message.maybe_delivered


def test_kept_options_are_those_of_this_queue_with_this_name() -> None:
    queue, other = Queue("mail"), Queue("mail", message_ttl=5)
    for each in (queue, other):
        each.declaration_key()
    first = PublishOptions.of(queue, {})
    assert PublishOptions.of(queue, {}) is first
    assert PublishOptions.of(other, {}).key != first.key
    assert PublishOptions.of(queue, {"priority": 3}).priority == 3
    queue.name = "post"
    assert PublishOptions.of(queue, {}).routing_key == "post"
    queue.name = "mail"
    assert PublishOptions.of(queue, {"headers": {"a": 1}}).headers == {"a": 1}
