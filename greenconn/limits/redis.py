"""Limits in Redis, Valkey and their clusters: scripts over the connection of messages.

The facts under a key are a sorted set: the holders, with the time until which they hold, in
microseconds of the server's clock.  The keys of one queue are in one slot.  A set ends with the last of
its leases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from greenconn.green.deadline import NEVER
from greenconn.green.slot import Slot
from greenconn.limits.store import (
    LONGEST_WAIT,
    MICRO,
    PATIENCE,
    Give,
    Note,
    Operation,
    Renew,
    Seen,
    Take,
    Taken,
    micro,
)
from greenconn.transport.redis.scripts import Script

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink
    from greenconn.transport.redis.pipeline import Commands
    from greenconn.wire.resp import Argument

_BEGINNING: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local function text(number) return string.format('%.0f', number) end
local function put(key, holder, till)
    redis.call('ZADD', key, text(till), holder)
    local left = math.ceil((till - now) / 1000)
    if redis.call('PTTL', key) < left then redis.call('PEXPIRE', key, text(left)) end
end
for each = 1, #KEYS do redis.call('ZREMRANGEBYSCORE', KEYS[each], '-inf', text(now)) end
"""

#: Keys: the place, the rate.  Arguments: the holder, the limit (0: no place), the lease, the interval
#: (0: no rate), the burst, '1' if it has waited, the patience, the longest wait.
_TAKE: Final = Script(
    "take",
    _BEGINNING
    + """
local limit, interval = tonumber(ARGV[2]), tonumber(ARGV[4])
if limit > 0 and not redis.call('ZSCORE', KEYS[1], ARGV[1]) and
    redis.call('ZCARD', KEYS[1]) >= limit then
    return {0, 0, redis.call('ZRANGE', KEYS[1], 0, 0)[1]}
end
local wait = 0
if interval > 0 then
    local full = tonumber(redis.call('ZSCORE', KEYS[2], 'full') or now)
    local promised = tonumber(redis.call('ZSCORE', KEYS[2], 'promised') or now)
    local due = math.max(now, full - (tonumber(ARGV[5]) - 1) * interval)
    if (ARGV[6] == '1' or promised <= now) and due - now <= tonumber(ARGV[7]) then
        put(KEYS[2], 'full', full + interval)
        wait = due - now
    else
        if promised > now then promised = promised + interval end
        promised = math.min(math.max(promised, due), now + tonumber(ARGV[8]))
        put(KEYS[2], 'promised', promised)
        return {0, promised - now, ''}
    end
end
if limit > 0 then put(KEYS[1], ARGV[1], now + tonumber(ARGV[3])) end
return {1, wait, ''}
""",
)
#: Keys: the place.  Arguments: the holder.
_GIVE: Final = Script("give", "return redis.call('ZREM', KEYS[1], ARGV[1])")
#: Keys: the place.  Arguments: the holder, the lease, '1' to take it in any case.
_RENEW: Final = Script(
    "renew",
    _BEGINNING
    + """
local held = redis.call('ZSCORE', KEYS[1], ARGV[1])
if held or ARGV[3] == '1' then put(KEYS[1], ARGV[1], now + tonumber(ARGV[2])) end
return held and 1 or 0
""",
)
_LATEST: Final = """
local latest = ''
for _, token in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if token > latest then latest = token end
end
"""
#: Keys: the key.  Arguments: the token, the lease.
_NOTE: Final = Script(
    "note",
    _BEGINNING
    + _LATEST
    + """
if ARGV[1] < latest then return 0 end
redis.call('DEL', KEYS[1])
put(KEYS[1], ARGV[1], now + tonumber(ARGV[2]))
return 1
""",
)
#: Keys: the key.
_READ: Final = Script("read", _BEGINNING + _LATEST + "return {text(now), latest}")


def run_in_redis(link: RedisLink, operations: Sequence[Operation]) -> list[Any]:
    """Carry *operations* out, all in one round trip, and return their replies.  May switch."""
    slots: list[tuple[Operation, Commands, Slot[Any]]] = []
    for operation in operations:
        commands = link.placement.of(operation.queue).commands
        slot: Slot[Any] = Slot()
        script, keys, arguments = _call_of(operation)
        names = tuple(commands.keys.limits(key) for key in keys)
        commands.post_script(script, names, *arguments, done=slot.offer)
        slots.append((operation, commands, slot))
    replies: list[Any] = []
    for operation, commands, slot in slots:
        reply = slot.wait(NEVER)
        if isinstance(reply, Exception):
            raise commands.pipeline.error(reply, "limits")
        replies.append(_reply_of(operation, reply))
    return replies


def _call_of(operation: Operation) -> tuple[Script, tuple[str, ...], tuple[Argument, ...]]:
    if isinstance(operation, Take):
        return (
            _TAKE,
            # A key that is not used is not written.
            (operation.place or operation.rate, operation.rate or operation.place),
            (
                operation.holder,
                operation.limit if operation.place else 0,
                micro(operation.lease),
                micro(operation.interval) if operation.rate else 0,
                operation.burst,
                "1" if operation.has_waited else "0",
                micro(PATIENCE),
                micro(LONGEST_WAIT),
            ),
        )
    if isinstance(operation, Give):
        return _GIVE, (operation.place,), (operation.holder,)
    if isinstance(operation, Renew):
        arguments = operation.holder, micro(operation.lease), "1" if operation.restores else "0"
        return _RENEW, (operation.place,), arguments
    if isinstance(operation, Note):
        return _NOTE, (operation.key,), (operation.token, micro(operation.lease))
    return _READ, (operation.key,), ()


def _reply_of(operation: Operation, reply: Any) -> Any:
    if isinstance(operation, Take):
        is_taken, wait, holder = reply
        return Taken(bool(is_taken), wait / MICRO, holder.decode() or None)
    if isinstance(operation, Renew):
        return bool(reply)
    if isinstance(operation, (Give, Note)):
        return None
    now, token = reply
    return Seen(int(now), token.decode() or None)
