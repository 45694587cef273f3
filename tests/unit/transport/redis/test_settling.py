"""Entries of held messages, and the moves that settle them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from greenconn.jsoncodec import loads
from greenconn.transport.redis.scripts import entry_suffix
from greenconn.transport.redis.settling import read_held

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(queue=names, raw=st.binary(max_size=50))
def test_entries_come_apart_as_they_were_put_together(queue: str, raw: bytes) -> None:
    held = read_held("gc.owner.12", b"[" + raw + entry_suffix(queue))
    assert held is not None
    assert (held.raw, held.exchange, held.routing_key, held.number) == (raw, "", queue, 12)


def test_entries_of_kombu() -> None:
    held = read_held("a-tag", b'[{"body": "a, b", "properties": {}}, "ex, x", "key"]')
    assert held is not None
    assert (held.exchange, held.routing_key) == ("ex, x", "key")
    assert loads(held.raw) == {"body": "a, b", "properties": {}}
    assert read_held("a-tag", b"nothing") is None
