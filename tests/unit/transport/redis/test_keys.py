"""The names of keys and channels."""

from __future__ import annotations

from greenconn.transport.redis.keys import Keys
from greenconn.transport.redis.options import RedisOptions


def test_keys() -> None:
    keys = Keys(RedisOptions(), 3)
    assert keys.lists("q") == (b"q", b"q\x06\x163", b"q\x06\x166", b"q\x06\x169")
    assert [keys.list_for("q", each) for each in (0, 2, 3, 9)] == [
        b"q", b"q", b"q\x06\x163", b"q\x06\x169",
    ]  # fmt: skip
    assert keys.topic("x") == "/3.x"
    assert keys.topic("x", "a.b") == "/3.x/a.b"
    assert keys.row(keys.member("a.#", "^a$", "queue")) == ("a.#", "^a$", "queue")
    assert keys.row(b"alone") == ("", "", "alone")
    prefixed = Keys(RedisOptions(global_keyprefix="p:", fanout_prefix=False), 0)
    assert prefixed.unacked == b"p:unacked"
    assert prefixed.topic("x") == "p:x"
    assert Keys(RedisOptions(fanout_prefix="/mine.", fanout_patterns=False)).topic("x", "a") == (
        "/mine.x"
    )
