"""Ids that sort as messages are delivered, and belong to one queue only."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from greenconn.broker.exchanges import Row
from greenconn.transport.couchdb.api import (
    MESSAGE,
    QUEUE,
    SHARED_RANGE,
    binding_id,
    message_id,
    name_of,
    named,
    range_of,
)

NAMES = st.text(min_size=1, max_size=20).filter(lambda name: name.isprintable())


@given(NAMES, NAMES)
def test_ids_belong_to_one_queue(one: str, other: str) -> None:
    doc_id = message_id(one, 3, 17, "abcd")
    assert doc_id.isascii()
    assert name_of(doc_id) == one
    within = range_of(MESSAGE, one)
    assert within.start <= doc_id < within.end
    if one != other:
        away = range_of(MESSAGE, other)
        assert not away.start <= doc_id < away.end


@given(NAMES)
def test_ranges_are_apart(name: str) -> None:
    for doc_id in (named(QUEUE, name), binding_id(name, Row("k", "", "q"))):
        assert name_of(doc_id) == name
        assert SHARED_RANGE.start <= doc_id < SHARED_RANGE.end
    message = message_id(name, 0, 0, "x")
    assert not SHARED_RANGE.start <= message < SHARED_RANGE.end


def test_messages_sort_by_priority_and_time() -> None:
    ids = [
        message_id("q", 255, 20, "b"),
        message_id("q", 10, 10**16, "a"),
        message_id("q", 9, 1, "a"),
        message_id("q", 0, 9, "a"),
        message_id("q", 0, 10, "a"),
        message_id("q", 0, 10, "b"),
    ]
    assert ids == sorted(ids)


def test_equal_bindings_have_one_id() -> None:
    row = Row("k", "", "q", {"a": 1, "b": 2})
    assert binding_id("x", row) == binding_id("x", Row("k", "", "q", {"b": 2, "a": 1}))
    for other in (row._replace(queue="r"), row._replace(arguments=None), row._replace(pattern="k")):
        assert binding_id("x", other) != binding_id("x", row)
