"""What one link declares and binds counts for all: a second process publishes by it."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.exceptions import NotFound
from tests.integration.capabilities import KINDS
from tests.integration.contract import Side


@pytest.fixture
def pair(side: Side) -> tuple[Any, Any]:
    """Channels of two links that know nothing of each other."""
    first = side.channel()
    if side.kind not in KINDS:
        pytest.skip("what is bound is known in one process, by kombu's design")
    if side.kind == "redis":
        # A transport of its own, as in another process.
        other = type(side.transport)(side.transport.client)
        link = other.establish_connection()
        side.links.append(link)
        return first, other.create_channel(link)
    return first, side.channel()


def test_headers_exchange_of_another(side: Side, pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    exchange = side.exchange(theirs, "headers")
    both, either = side.queue(theirs), side.queue(theirs)
    wanted = {"a": 1, "b": "x"}
    theirs.queue_bind(both, exchange, "", arguments={"x-match": "all", **wanted})
    theirs.queue_bind(either, exchange, "", arguments={"x-match": "any", **wanted})
    side.send(ours, "all", exchange, "", headers=wanted, mandatory=True)
    side.send(ours, "one", exchange, "", headers={"a": 1, "b": "y"}, mandatory=True)
    side.send(ours, "none", exchange, "", headers={"a": True})
    assert side.bodies(ours, both) == ["all"]
    assert side.bodies(ours, either) == ["all", "one"]
    ours.queue_unbind(either, exchange, "", arguments={"x-match": "any", **wanted})
    side.send(theirs, "after", exchange, "", headers={"a": 1})
    side.send(theirs, "after", exchange, "", headers=wanted)
    assert (side.bodies(ours, both), side.bodies(ours, either)) == (["after"], [])


def test_binding_of_exchanges_of_another(side: Side, pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    source, middle = side.exchange(theirs, "topic"), side.exchange(theirs, "direct")
    queue = side.queue(theirs)
    theirs.queue_bind(queue, middle, "a.b")
    theirs.exchange_bind(middle, source, "a.*")
    side.send(ours, "1", source, "a.b", mandatory=True)
    side.send(ours, "2", source, "a.c")
    side.send(ours, "3", source, "x.b")
    assert side.bodies(ours, queue) == ["1"]
    ours.exchange_unbind(middle, source, "a.*")
    side.send(theirs, "4", source, "a.b")
    assert side.bodies(ours, queue) == []


def test_binding_goes_with_its_destination(side: Side, pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    source, middle = side.exchange(theirs, "fanout"), side.exchange(theirs, "fanout")
    queue = side.queue(theirs)
    theirs.exchange_bind(middle, source)
    ours.exchange_delete(middle)
    ours.exchange_declare(middle, "fanout", auto_delete=False)
    ours.queue_bind(queue, middle)
    side.send(ours, "x", source, "")
    assert side.bodies(ours, queue) == []


def test_unbinding_what_another_has_bound(side: Side, pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    exchange, queue = side.exchange(theirs), side.queue(theirs)
    theirs.queue_bind(queue, exchange, "key")
    ours.queue_unbind(queue, exchange, "key")
    side.send(theirs, "x", exchange, "key")
    assert side.bodies(theirs, queue) == []


def test_auto_delete_exchange_goes_with_its_destination(side: Side, pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    source = side.exchange(theirs, auto_delete=True)
    middle = side.exchange(theirs)
    theirs.exchange_bind(middle, source, "key")
    ours.exchange_delete(middle)
    with pytest.raises(NotFound):
        ours.exchange_declare(source, "direct", passive=True)


def test_auto_delete_exchange_that_was_never_bound_stays(side: Side, pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    exchange, queue = side.exchange(theirs, auto_delete=True), side.queue(theirs)
    ours.queue_unbind(queue, exchange, "key")
    ours.exchange_declare(exchange, "direct", passive=True)
    theirs.queue_bind(queue, exchange, "key")
    side.send(ours, "x", exchange, "key")
    assert side.bodies(theirs, queue) == ["x"]
    theirs.queue_unbind(queue, exchange, "key")
    with pytest.raises(NotFound):
        theirs.exchange_declare(exchange, "direct", passive=True)


def test_deleted_exchange_is_gone_for_who_deleted_it(side: Side, pair: tuple[Any, Any]) -> None:
    ours, _ = pair
    exchange, queue = side.exchange(ours), side.queue(ours)
    ours.queue_bind(queue, exchange, "key")
    ours.exchange_delete(exchange)
    for channel in pair:
        with pytest.raises(NotFound):
            channel.exchange_declare(exchange, "direct", passive=True)


def test_each_change_of_another_counts_for_the_next_message(
    side: Side, pair: tuple[Any, Any]
) -> None:
    ours, theirs = pair
    exchange = side.exchange(theirs)
    one, two = side.queue(theirs), side.queue(theirs)
    theirs.queue_bind(one, exchange, "key")
    for number in range(3):
        side.send(ours, f"one {number}", exchange, "key")
        theirs.queue_bind(two, exchange, "key")
        side.send(ours, f"both {number}", exchange, "key")
        theirs.queue_unbind(one, exchange, "key")
        side.send(ours, f"two {number}", exchange, "key")
        theirs.queue_bind(one, exchange, "key")
        theirs.queue_unbind(two, exchange, "key")
    rounds = range(3)
    assert side.bodies(ours, one) == [f"{who} {each}" for each in rounds for who in ("one", "both")]
    assert side.bodies(ours, two) == [f"{who} {each}" for each in rounds for who in ("both", "two")]
