"""The frames that the benchmarks make by hand are those of AMQP."""

from __future__ import annotations

from amqp.basic_message import Message
from amqp.serialization import loads

from benchmarks.frames import JSON, Properties, table
from benchmarks.line import Address


def test_properties_are_read_as_they_were_written() -> None:
    block = Properties.encode(**JSON, delivery_mode=2, correlation_id="c", reply_to="r")
    assert Properties.decode(block) == {**JSON, "correlation_id": "c", "reply_to": "r"}
    message = Message()
    message._load_properties(60, block, 0)  # the reference
    values = message.properties
    assert values["delivery_mode"] == 2
    assert values["application_headers"] == {}


def test_a_table_is_one() -> None:
    assert loads("F", table({"x-max-length": 2}), 0)[0] == [{"x-max-length": 2}]


def test_the_address_is_that_of_the_url() -> None:
    assert Address.of("amqp://a:b@host:1/%2F") == Address("host", 1, "a", "b", "/")
    assert Address.of("amqp://host//").vhost == "/"
    assert Address.of("amqp://host").url == "amqp://guest:guest@host:5672/%2F"
