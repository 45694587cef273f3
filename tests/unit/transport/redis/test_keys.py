"""The names of keys and channels."""

from __future__ import annotations

from redis.crc import key_slot

from greenconn.transport.redis.options import Keys, RedisOptions


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


def test_the_shard_channel_of_an_exchange_is_in_the_slot_of_its_keys() -> None:
    keys = Keys(RedisOptions(global_keyprefix="p:", fanout_sharding="on"), 0, "177")
    assert keys.shard_channel("x") == b"p:{177}/0.x"
    assert key_slot(keys.shard_channel("x")) == key_slot(keys.plain("queue"))
    assert keys.is_sharded
    assert not Keys(RedisOptions(fanout_sharding="listen"), 0, "177").is_sharded
    assert not Keys(RedisOptions(fanout_sharding="on")).is_sharded, "a single server has no shards"
