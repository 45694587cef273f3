"""Checks of the server's replies: one of another form ends the connection.

It would be taken for what it is not, in some greenlet that did nothing wrong: bytes were spoiled, or
what answers is no Redis.  Only the commands whose replies are looked at are named here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from greenconn.transport.redis.errors import NotRedis
from greenconn.transport.redis.scripts import ADVANCE, DROP, EXPIRE, JOIN, MOVE, Script

__all__ = ["check_reply"]


def _is_count(reply: Any) -> bool:
    return type(reply) is int


def _is_text(reply: Any) -> bool:
    return reply is None or isinstance(reply, bytes)


def _are_texts(reply: Any) -> bool:
    return isinstance(reply, list) and all(map(_is_text, reply))


def _are_members(reply: Any) -> bool:
    return isinstance(reply, (list, set)) and all(isinstance(each, bytes) for each in reply)


def _is_page(reply: Any) -> bool:
    """Return whether the reply is a cursor with a page of results."""
    return (
        isinstance(reply, list)
        and len(reply) == 2
        and isinstance(reply[0], bytes)
        and _are_members(reply[1])
    )


def _is_advance(reply: Any) -> bool:
    """Return whether the time was advanced, and the time."""
    return (
        isinstance(reply, list)
        and len(reply) == 2
        and _is_count(reply[0])
        and isinstance(reply[1], bytes)
        and _is_number(reply[1] or b"0")
    )


def _is_end(reply: Any) -> bool:
    """Return a number of messages, and names."""
    return (
        isinstance(reply, list) and bool(reply) and _is_count(reply[0]) and _are_members(reply[1:])
    )


def _is_score(reply: Any) -> bool:
    return reply is None or _is_number(reply)


def _is_number(value: Any) -> bool:
    if isinstance(value, bytes):
        try:
            value = float(value)
        except ValueError:
            return False
    return isinstance(value, (int, float))


def _are_pairs(reply: Any) -> bool:
    """Return whether it is names with their values, in the form of either protocol."""
    if isinstance(reply, dict):
        return all(isinstance(each, bytes) for pair in reply.items() for each in pair)
    return isinstance(reply, list) and len(reply) % 2 == 0 and _are_members(reply)


def _are_scored(reply: Any) -> bool:
    """Members with their scores, in the form of either protocol."""
    if not isinstance(reply, list):
        return False
    is_nested = bool(reply) and isinstance(reply[0], list)
    pairs = reply if is_nested else [reply[at : at + 2] for at in range(0, len(reply), 2)]
    return all(
        isinstance(pair, list)
        and len(pair) == 2
        and isinstance(pair[0], bytes)
        and _is_number(pair[1])
        for pair in pairs
    )


_FORMS: Final[dict[bytes, Callable[[Any], bool]]] = {
    b"DEL": _is_count,
    b"EXISTS": _is_count,
    b"GET": _is_text,
    b"HDEL": _is_count,
    b"HGETALL": _are_pairs,
    b"HMGET": _are_texts,
    b"LINDEX": _is_text,
    b"LLEN": _is_count,
    b"SISMEMBER": _is_count,
    b"SMEMBERS": _are_members,
    b"SSCAN": _is_page,
    b"ZCOUNT": _is_count,
    b"ZRANGEBYSCORE": _are_scored,
    b"ZREM": _is_count,
    b"ZSCORE": _is_score,
}


_OF_SCRIPTS: Final[dict[Script, Callable[[Any], bool]]] = {
    ADVANCE: _is_advance,
    DROP: _is_end,
    EXPIRE: _are_texts,
    JOIN: _is_count,
    MOVE: _is_count,
}
#: By text and by digest.
_SCRIPTS: Final[dict[bytes, Callable[[Any], bool]]] = {
    name: has_form
    for script, has_form in _OF_SCRIPTS.items()
    for name in (script.text, script.digest)
}


def check_reply(command: bytes, reply: Any, where: str) -> None:
    """See that *reply* has the form of a reply to *command* (packed).

    Raises:
        NotRedis: it has not.
    """
    count, _, name, *behind = command.split(b"\r\n", 5)
    is_script = name in (b"EVAL", b"EVALSHA")
    has_form = _SCRIPTS.get(behind[1]) if is_script else _FORMS.get(name)
    is_right = has_form is None or has_form(reply)
    if is_right and name == b"HMGET":  # a value for each field: all but the command and its key
        is_right = len(reply) == int(count[1:]) - 2
    if not is_right:
        raise NotRedis(f"{where}: the reply to {name.decode()} is not as expected: {reply!r:.60}")
