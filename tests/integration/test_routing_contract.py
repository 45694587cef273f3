"""How every transport routes."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.exceptions import PreconditionFailed
from tests.integration.contract import Side


def routed(
    side: Side,
    kind: str,
    bindings: list[tuple[str, dict[str, Any] | None]],
    messages: list[tuple[str, dict[str, Any]]],
) -> list[list[str]]:
    """For the queue of each binding to an exchange: the numbers of the messages that reached it."""
    channel, exchange = side.open_exchange(kind)
    queues = []
    for key, arguments in bindings:
        queues.append(side.queue(channel))
        channel.queue_bind(queues[-1], exchange, key, arguments=arguments)
    for number, (key, headers) in enumerate(messages):
        side.send(channel, str(number), exchange, key, headers=headers)
    return [side.bodies(channel, queue) for queue in queues]


def test_direct(side: Side) -> None:
    assert routed(
        side,
        "direct",
        [("a", None), ("b", None), ("a", None), ("", None)],
        [("a", {}), ("b", {}), ("", {}), ("a.b", {})],
    ) == [["0"], ["1"], ["0"], ["2"]]


def test_fanout_ignores_keys(side: Side) -> None:
    assert routed(side, "fanout", [("a", None), ("", None)], [("z", {}), ("", {})]) == [
        ["0", "1"],
        ["0", "1"],
    ]


TOPICS = ["z", "z.a", "z.a.b", "", "a.z", ".", "z.", "a..b", "z.a.z"]
PATTERNS = {
    "z": "z",
    "z.#": "z, z.a, z.a.b, z., z.a.z",
    "z.*": "z.a, z.",
    "#": "z, z.a, z.a.b, , a.z, ., z., a..b, z.a.z",
    "*": "z",
    "*.*": "z.a, a.z, ., z.",
    "#.z": "z, a.z, z.a.z",
    "#.a.#": "z.a, z.a.b, a.z, a..b, z.a.z",
    "*.#": "z, z.a, z.a.b, a.z, ., z., a..b, z.a.z",
    "a.*.b": "a..b",
    "": "",
    "z.#.z": "z.a.z",
    "#.#": "z, z.a, z.a.b, , a.z, ., z., a..b, z.a.z",
}


def test_topic(side: Side) -> None:
    got = routed(
        side, "topic", [(pattern, None) for pattern in PATTERNS], [(key, {}) for key in TOPICS]
    )
    found = {
        pattern: ", ".join(TOPICS[int(number)] for number in numbers)
        for pattern, numbers in zip(PATTERNS, got, strict=True)
    }
    assert found == PATTERNS


def test_headers(side: Side) -> None:
    got = routed(
        side,
        "headers",
        [
            ("", {"x-match": "all", "a": 1, "b": "two"}),
            ("", {"x-match": "any", "a": 1, "b": "two"}),
            ("", {"a": 1}),
            ("", {"x-match": "any"}),
            ("", {"x-match": "all"}),
            ("", {"a": None}),
        ],
        [
            ("", {"a": 1, "b": "two", "c": 3}),
            ("", {"a": 1}),
            ("", {"b": "two"}),
            ("", {"a": "1"}),
            ("", {}),
        ],
    )
    assert got == [
        ["0"],
        ["0", "1", "2"],
        ["0", "1"],
        [],
        ["0", "1", "2", "3", "4"],
        ["0", "1", "3"],
    ]


def test_headers_with_x(side: Side) -> None:
    got = routed(
        side,
        "headers",
        [
            ("", {"x-match": "all-with-x", "x-a": 1, "b": 2}),
            ("", {"x-match": "any-with-x", "x-a": 1, "b": 2}),
            ("", {"x-match": "all", "x-a": 1, "b": 2}),
        ],
        [("", {"b": 2}), ("", {"x-a": 1}), ("", {"x-a": 1, "b": 2})],
    )
    assert got == [["2"], ["0", "1", "2"], ["0", "2"]]


def test_unknown_match(side: Side) -> None:
    channel, exchange = side.open_exchange("headers")
    queue = side.queue(channel)
    with pytest.raises(PreconditionFailed):
        channel.queue_bind(queue, exchange, "", arguments={"x-match": "some"})


def test_queue_gets_a_message_once(side: Side) -> None:
    channel, exchange = side.open_exchange("topic")
    queue = side.queue(channel)
    for pattern in ("a.#", "a.b", "*.b", "a.b"):
        channel.queue_bind(queue, exchange, pattern)
    side.send(channel, "x", exchange, "a.b")
    assert side.bodies(channel, queue) == ["x"]
    # An equal binding is no second one: to remove it once is to remove it.
    for pattern in ("a.#", "a.b", "*.b"):
        channel.queue_unbind(queue, exchange, pattern)
    side.send(channel, "x", exchange, "a.b")
    assert side.bodies(channel, queue) == []


def test_changed_bindings_count_at_once(side: Side) -> None:
    channel, exchange = side.open_exchange("direct")
    first, second = side.queue(channel), side.queue(channel)
    for queue in (first, second):
        channel.queue_bind(queue, exchange, "key")
        side.send(channel, queue, exchange, "key")
    channel.queue_unbind(first, exchange, "key")
    side.send(channel, "last", exchange, "key")
    assert side.bodies(channel, first) == [first, second]
    assert side.bodies(channel, second) == [second, "last"]


def test_arguments_distinguish_bindings(side: Side) -> None:
    channel, exchange = side.open_exchange("headers")
    queue = side.queue(channel)
    channel.queue_bind(queue, exchange, "", arguments={"a": 1})
    channel.queue_bind(queue, exchange, "", arguments={"a": 2})
    channel.queue_unbind(queue, exchange, "", arguments={"a": 1})
    side.send(channel, "one", exchange, "", headers={"a": 1})
    side.send(channel, "two", exchange, "", headers={"a": 2})
    assert side.bodies(channel, queue) == ["two"]


def test_exchanges_bound_to_exchanges(side: Side) -> None:
    channel = side.channel()
    source, middle, back = (side.exchange(channel, "topic") for _ in range(3))
    queue = side.queue(channel)
    channel.exchange_bind(middle, source, "a.#")
    channel.exchange_bind(back, middle, "#")
    channel.exchange_bind(source, back, "#")  # a circle
    channel.queue_bind(queue, middle, "*.b")
    channel.queue_bind(queue, back, "#.b")
    side.send(channel, "1", source, "a.b")
    side.send(channel, "2", source, "c.b")
    side.send(channel, "3", back, "a.b")
    assert side.bodies(channel, queue) == ["1", "3"]
    channel.exchange_unbind(middle, source, "a.#")
    side.send(channel, "4", source, "a.b")
    assert side.bodies(channel, queue) == []


def test_alternate_exchange_gets_what_has_no_binding(side: Side) -> None:
    channel = side.channel()
    last = side.exchange(channel, "fanout")
    first = side.exchange(channel, "direct", arguments={"alternate-exchange": last})
    bound, rest = side.queue(channel), side.queue(channel)
    channel.queue_bind(bound, first, "key")
    channel.queue_bind(rest, last)
    side.send(channel, "bound", first, "key", mandatory=True)
    side.send(channel, "other", first, "other", mandatory=True)
    assert side.bodies(channel, bound) == ["bound"]
    assert side.bodies(channel, rest) == ["other"]


def test_deleted_exchange_takes_its_bindings_along(side: Side) -> None:
    channel, exchange = side.open_exchange("direct")
    queue = side.queue(channel)
    channel.queue_bind(queue, exchange, "key")
    channel.exchange_delete(exchange)
    channel.exchange_declare(exchange, "direct", auto_delete=False)
    side.send(channel, "x", exchange, "key")
    assert side.bodies(channel, queue) == []


def test_copies_by_header(side: Side) -> None:
    channel, exchange = side.open_exchange("direct")
    queues = [side.queue(channel) for _ in range(3)]
    for queue in queues:
        channel.queue_bind(queue, exchange, queue)
    headers = {"CC": [queues[1]], "BCC": [queues[2]]}
    side.send(channel, "x", exchange, queues[0], headers=headers)
    got = [side.get(channel, queue) for queue in queues]
    assert [each.headers for each in got] == [{"CC": [queues[1]]}] * 3
