"""The commands that publish to fan-out exchanges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenconn.transport.redis.fanout import broadcast_command, read_shard_message
from greenconn.transport.redis.options import Keys, RedisOptions
from greenconn.wire.resp import RespParser, pack

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def test_a_message_is_published_to_the_channel_of_its_key() -> None:
    plain = broadcast_command(Keys(RedisOptions(), 3), "news", "a.b", b"{}")
    assert plain == pack(b"PUBLISH", b"/3.news/a.b", b"{}")


@pytest.mark.parametrize("sharding", ["off", "listen"])
def test_in_a_cluster_it_goes_to_all_nodes_unless_the_option_is_on(sharding: str) -> None:
    keys = Keys(RedisOptions(fanout_sharding=sharding), 0, "177")
    assert broadcast_command(keys, "news", "", b"{}") == pack(b"PUBLISH", b"/0.news", b"{}")


@given(exchange=names, key=names, raw=st.binary(max_size=50))
def test_a_message_of_a_shard_channel_is_read_as_it_was_written(
    exchange: str, key: str, raw: bytes
) -> None:
    keys = Keys(RedisOptions(fanout_sharding="on"), 0, "177")
    [command] = RespParser().feed(broadcast_command(keys, exchange, key, raw))
    assert command[:2] == [b"SPUBLISH", keys.shard_channel(exchange)]
    assert read_shard_message(command[2]) == (keys.topic(exchange, key).encode(), raw)


@pytest.mark.parametrize("payload", [b"", b"{}", b'{"body": 1}', b"x:y", b":"])
def test_what_is_no_message_of_ours_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_shard_message(payload)
