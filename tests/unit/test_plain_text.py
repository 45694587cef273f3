"""Texts of classes of their own: what they hold counts, not what ``str()`` makes of them."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest

from greenconn.connection import Connection
from greenconn.encoding import plain_text
from greenconn.entity import Exchange, Queue
from greenconn.publishing.publisher import PublishOptions
from greenconn.transport.amqp.message import pack_properties, unpack_properties


class Kind(str, Enum):
    CREATED = "created"


class Shout(str):
    """Another class of text."""

    __slots__ = ()

    def __str__(self) -> str:
        return "WRONG"

    def __format__(self, spec: str) -> str:
        return "WRONG"


TEXTS = pytest.mark.parametrize("text", [Kind.CREATED, Shout("created"), "created"], ids=repr)


@TEXTS
def test_it_is_what_the_value_holds(text: str) -> None:
    assert type(plain_text(text)) is str
    assert plain_text(text) == "created"
    others: list[Any] = [None, 1, b"created", ["created"]]
    for other in others:
        assert plain_text(other) is other


@TEXTS
def test_properties_of_amqp(text: str) -> None:
    names = ("correlation_id", "reply_to", "message_id", "type", "user_id", "app_id", "cluster_id")
    packed = pack_properties(None, text, text, {text: text}, dict.fromkeys(names, text))
    properties = unpack_properties(bytes(12) + packed)
    assert properties.pop("application_headers") == {"created": "created"}
    assert set(properties.values()) == {"created"}
    assert set(properties) == {*names, "content_type", "content_encoding"}


@TEXTS
def test_entities_have_plain_names(text: str) -> None:
    exchange = Exchange(text, type=text)
    queue = Queue(text, exchange, routing_key=text)
    names = [queue.name, queue.routing_key, exchange.name, exchange.type]
    assert [(each, type(each)) for each in names] == [("created", str)] * 4


@TEXTS
def test_targets_and_options_of_publish(text: str) -> None:
    message = PublishOptions(text, {"type": text, "correlation_id": text})
    assert [type(message.routing_key), type(message.properties["type"])] == [str, str]
    assert f"{message.routing_key} {message.properties['type']}" == "created created"


@TEXTS
def test_the_program_names_queues_by_it(text: str) -> None:
    with Connection("memory://") as connection:
        producer = connection.Producer()
        Queue(text)(connection.default_channel).declare()
        producer.publish({"a": 1}, routing_key=text, type=text, headers={text: text})
        message = Queue("created")(connection.default_channel).get()
        assert message is not None
        assert (message.properties["type"], message.headers) == ("created", {"created": "created"})
        assert type(message.properties["type"]) is str
        message.ack()
