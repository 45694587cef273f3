"""The scripts that run in the server, and the way to call them.

Rules for scripts:

- A script that fails keeps what it has done so far, so what may fail comes first: keys of a wrong
  type are found by writes that change nothing.  (``TYPE`` is a read, and a read inside a script
  registers all keys of the script with client tracking: each ack of anybody would wake everybody.)
- The first write is one that needs no memory, since a server at its maxmemory refuses a script by its
  first write alone: whoever consumes makes room, so it must be able to.
- Nothing is parsed and nothing is encoded anew; a message is wrapped by concatenation.
- The clock is the server's.
- At most :data:`CLAIM_COUNT` messages or about :data:`CLAIM_BYTES` bytes in one call, since nobody
  else is served meanwhile.

The first call of a script on a connection sends its text, which the server remembers; later ones send
its digest.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Final

from greenconn.jsoncodec import dumps
from greenconn.wire.resp import Argument, bulk, pack

__all__ = [
    "BIND",
    "CANARY",
    "CLAIM",
    "CLAIM_BYTES",
    "CLAIM_COUNT",
    "JOIN",
    "LEAVE",
    "MOVE",
    "RENEW",
    "Script",
    "Scripts",
    "entry_suffix",
]

#: Messages and bytes that one claim takes at most (one message always).
CLAIM_COUNT: Final = 100
CLAIM_BYTES: Final = 256 * 1024


class Script:
    """A script by its text and its digest."""

    __slots__ = ("digest", "name", "text")

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text.encode()
        self.digest = sha1(self.text, usedforsecurity=False).hexdigest().encode()

    def __repr__(self) -> str:
        return f"<Script {self.name}>"


#: Moves messages from the lists of a queue to what this consumer holds, and returns them.
#:
#: Keys: unacked, its index, the lists.  Arguments: what the fields begin with, the number of the first
#: field, how many messages and bytes at most, what follows a message in its value.
CLAIM: Final = Script(
    "claim",
    """
redis.call('HDEL', KEYS[1], '')
redis.call('ZREM', KEYS[2], '')
local number, count, bytes = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local taken, values, scores = {}, {}, {}
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
for place = 3, #KEYS do
    while count > 0 and bytes > 0 do
        local raw = redis.pcall('RPOP', KEYS[place])
        if not raw or type(raw) == 'table' then break end
        local field = ARGV[1] .. string.format('%d', number)
        taken[#taken + 1] = raw
        values[#values + 1] = field
        values[#values + 1] = '[' .. raw .. ARGV[5]
        scores[#scores + 1] = now
        scores[#scores + 1] = field
        number, count, bytes = number + 1, count - 1, bytes - #raw
    end
end
if #taken > 0 then
    redis.call('HSET', KEYS[1], unpack(values))
    redis.call('ZADD', KEYS[2], unpack(scores))
end
return taken
""",
)

#: Puts a message into a list, for the first claim of a connection to take.
#:
#: Keys: the list.
CANARY: Final = Script(
    "canary",
    """
redis.call('DEL', KEYS[1])
redis.call('LPUSH', KEYS[1], '{}')
redis.call('PEXPIRE', KEYS[1], 60000)
""",
)

#: Moves messages from what a consumer holds into lists, and returns how many it still held.
#:
#: Keys: unacked, its index, the owners, the declarations of auto-delete queues, the lists.  Arguments:
#: an owner who must be dead, or nothing; the number of the declarations; then for each message its
#: field, which of them there must be or the message goes with its queue (0: none), RPUSH (to the head)
#: or LPUSH, the number of its lists, and what goes into each of them.
MOVE: Final = Script(
    "move",
    """
redis.call('HDEL', KEYS[1], '')
redis.call('ZREM', KEYS[2], '')
local queues, gone = tonumber(ARGV[2]), {}
for place = 4 + queues, #KEYS do redis.call('LTRIM', KEYS[place], 0, -1) end
if ARGV[1] ~= '' then
    local expiry = redis.call('ZSCORE', KEYS[3], ARGV[1])
    local time = redis.call('TIME')
    if expiry and tonumber(expiry) > time[1] + time[2] / 1000000 then return -1 end
end
for queue = 1, queues do
    -- A look by a write: see the rules for scripts.
    if redis.call('SET', KEYS[3 + queue], '', 'NX') then
        redis.call('DEL', KEYS[3 + queue])
        gone[queue] = true
    end
end
local moved, place, at = 0, 4 + queues, 3
while at <= #ARGV do
    local field, queue, push = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2]
    local lists = tonumber(ARGV[at + 3])
    local held = redis.call('HDEL', KEYS[1], field) == 1
    redis.call('ZREM', KEYS[2], field)
    for copy = 1, lists do
        if held and not gone[queue] then redis.call(push, KEYS[place], ARGV[at + 3 + copy]) end
        place = place + 1
    end
    if held then moved = moved + 1 end
    at = at + 4 + lists
end
return moved
""",
)

#: Tells that an owner lives, and returns the server's time.
#:
#: Keys: the owners, the index.  Arguments: owner, seconds of its lease, the fields it holds.
RENEW: Final = Script(
    "renew",
    """
redis.call('ZREM', KEYS[1], '')
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local expiry = string.format('%.6f', now + ARGV[2])
redis.call('ZADD', KEYS[1], expiry, ARGV[1])
for at = 3, #ARGV do redis.call('ZADD', KEYS[2], 'XX', now, ARGV[at]) end
return now
""",
)

#: Notes that an owner consumes from a queue, and returns how many consumers others have there; -1: it
#: may not, since one of them wants to be alone.
#:
#: Keys: who consumes from it, all owners.  Arguments: the owner, and ``exclusive``, or how many
#: consumers it has now, or nothing: it only asks.
JOIN: Final = Script(
    "join",
    """
redis.call('HDEL', KEYS[1], '')
local time = redis.call('TIME')
local all, others = redis.call('HGETALL', KEYS[1]), 0
for at = 1, #all, 2 do
    if all[at] ~= ARGV[1] then
        local expiry = redis.call('ZSCORE', KEYS[2], all[at])
        if expiry and tonumber(expiry) > time[1] + time[2] / 1000000 then
            local alone = all[at + 1] == 'exclusive' or ARGV[2] == 'exclusive'
            if alone and ARGV[2] ~= '' then return -1 end
            others = others + (tonumber(all[at + 1]) or 1)
        else
            redis.call('HDEL', KEYS[1], all[at])
        end
    end
end
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
return others
""",
)

#: Notes that an owner consumes from a queue no more; with an auto-delete queue that nobody else
#: consumes from, deletes it, and returns 1.
#:
#: Keys: who consumes from it, all owners, its declaration, its lists.  Arguments: the owner, and 1 for
#: an auto-delete queue.
LEAVE: Final = Script(
    "leave",
    """
redis.call('HDEL', KEYS[1], ARGV[1])
if ARGV[2] ~= '1' then return 0 end
local time = redis.call('TIME')
for _, other in ipairs(redis.call('HKEYS', KEYS[1])) do
    local expiry = redis.call('ZSCORE', KEYS[2], other)
    if expiry and tonumber(expiry) > time[1] + time[2] / 1000000 then return 0 end
end
redis.call('DEL', KEYS[1])
for place = 3, #KEYS do redis.call('DEL', KEYS[place]) end
return 1
""",
)

#: Adds a binding of a queue that expires (kombu's way).
#:
#: Keys: the table, the deadlines of tables.  Arguments: the binding, the exchange, milliseconds.
BIND: Final = Script(
    "bind",
    """
redis.call('SADD', KEYS[1], ARGV[1])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZADD', KEYS[2], 'GT', now + tonumber(ARGV[3]), ARGV[2])
""",
)


def entry_suffix(queue: str) -> bytes:
    """What follows a message in its entry: exchange and routing key, as kombu reads them."""
    return f', "", {dumps(queue)}]'.encode()


class Scripts:
    """Calls of scripts over one connection: which of them the server has seen on it."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: set[Script] = set()

    def call(self, script: Script, keys: tuple[bytes, ...], *args: Argument) -> bytes:
        """The command that runs *script*; it must be written, and in this order."""
        if script in self._seen:
            return pack(b"EVALSHA", script.digest, len(keys), *keys, *args)
        self._seen.add(script)
        return pack(b"EVAL", script.text, len(keys), *keys, *args)

    def forget(self) -> None:
        """The server has forgotten its scripts."""
        self._seen.clear()

    @staticmethod
    def claim_frame(keys: tuple[bytes, ...], prefix: bytes, suffix: bytes) -> tuple[bytes, bytes]:
        """What stands before and behind the number and the count of a claim of always the same keys.

        The script must have been called on this connection before.
        """
        parts: tuple[Argument, ...] = (b"EVALSHA", CLAIM.digest, len(keys), *keys, prefix)
        front = b"*%d\r\n%b" % (len(parts) + 4, b"".join(map(bulk, parts)))
        return front, bulk(CLAIM_BYTES) + bulk(suffix)
