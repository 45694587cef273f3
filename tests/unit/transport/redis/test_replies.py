"""Replies of a form that no Redis gives."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.transport.redis.errors import NotRedis
from greenconn.transport.redis.replies import check_reply
from greenconn.transport.redis.scripts import ADVANCE, DROP, JOIN, MOVE
from greenconn.wire.resp import pack

RIGHT: list[tuple[tuple[Any, ...], Any]] = [
    (("GET", "k"), None),
    (("GET", "k"), b"x"),
    (("EXISTS", "k"), 0),
    (("HMGET", "k", "a", "b"), [None, b"x"]),
    (("SMEMBERS", "k"), {b"x"}),
    (("SMEMBERS", "k"), []),
    (("SISMEMBER", "k", "m"), 1),
    (("SSCAN", "k", 0), [b"0", [b"a"]]),
    (("ZCOUNT", "k", 0, 1), 2),
    (("ZSCORE", "k", "m"), b"1.5"),
    (("ZSCORE", "k", "m"), 1.5),
    (("HGETALL", "k"), {b"a": b"b"}),
    (("HGETALL", "k"), [b"a", b"b"]),
    (("ZRANGEBYSCORE", "k", 0, 1), [[b"m", 1.5]]),
    (("ZRANGEBYSCORE", "k", 0, 1), [b"m", b"1.5"]),
    (("EVAL", JOIN.text, 0), -1),
    (("EVALSHA", MOVE.digest, 0), 3),
    (("EVAL", ADVANCE.text, 0), [0, b""]),
    (("EVAL", ADVANCE.text, 0), [1, b"1500"]),
    (("EVAL", DROP.text, 0), [-1]),
    (("EVAL", DROP.text, 0), [3, b"an exchange"]),
    (("EVALSHA", b"of another script", 0), b"anything"),
    (("SET", "k", "v"), [b"anything"]),
]
WRONG: list[tuple[tuple[Any, ...], Any]] = [
    (("GET", "k"), 5),
    (("EXISTS", "k"), b"OK"),
    (("EXISTS", "k"), True),
    (("HMGET", "k", "a", "b"), [None]),
    (("HMGET", "k", "a", "b"), [None, b"x", b"y"]),
    (("HMGET", "k", "a"), [5]),
    (("SMEMBERS", "k"), [None]),
    (("SSCAN", "k", 0), [b"0"]),
    (("SSCAN", "k", 0), [b"0", [5]]),
    (("ZCOUNT", "k", 0, 1), b"2"),
    (("ZSCORE", "k", "m"), b"high"),
    (("HGETALL", "k"), [b"a"]),
    (("HGETALL", "k"), {b"a": 5}),
    (("ZRANGEBYSCORE", "k", 0, 1), [[b"m"]]),
    (("ZRANGEBYSCORE", "k", 0, 1), [b"m"]),
    (("ZRANGEBYSCORE", "k", 0, 1), None),
    (("EVAL", JOIN.text, 0), None),
    (("EVALSHA", MOVE.digest, 0), b"3"),
    (("EVAL", ADVANCE.text, 0), [1]),
    (("EVAL", ADVANCE.text, 0), [1, b"soon"]),
    (("EVAL", DROP.text, 0), []),
    (("EVAL", DROP.text, 0), [b"3"]),
]


@pytest.mark.parametrize(("command", "reply"), RIGHT)
def test_what_a_redis_replies(command: tuple[Any, ...], reply: Any) -> None:
    check_reply(pack(*command), reply, "redis://h")


@pytest.mark.parametrize(("command", "reply"), WRONG)
def test_what_no_redis_replies(command: tuple[Any, ...], reply: Any) -> None:
    with pytest.raises(NotRedis, match=r"redis://h: the reply to \w+ is not as expected"):
        check_reply(pack(*command), reply, "redis://h")
