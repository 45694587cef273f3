"""The scripts that run in the server, and the way to call them.

Rules for scripts:

- A script that fails keeps what it has done so far, so what may fail comes first: keys of a wrong
  type are found by writes that change nothing.  (``TYPE`` is a read, and a read inside a script
  registers all keys of the script with client tracking: each ack would wake all clients.)
- The first write is one that needs no memory, since a server at its maxmemory refuses a script by its
  first write alone: consuming makes room, so it must go on.
- A script uses the keys that are given to it, and no other: servers that divide keys among threads or
  nodes (Dragonfly, clusters) execute it where these are.
- Nothing is parsed and nothing is encoded anew; a message is wrapped by concatenation.
- No script of leases reads the server's clock, which may be set: they end by the time that the sweepers
  count (see ``maintenance``), and marks for kombu's consumers are the clients' time, as kombu's own are.
- At most :data:`CLAIM_COUNT` messages or about :data:`CLAIM_BYTES` bytes in one call, since no
  other client is served meanwhile.

The first call of a script on a connection sends its text, which the server remembers; later ones send
its digest.
"""

from __future__ import annotations

from hashlib import sha1
from time import time
from typing import Final

from greenconn.jsoncodec import dumps
from greenconn.wire.resp import Argument, bulk, pack

#: Messages and bytes that one claim takes at most (one message always).
CLAIM_COUNT: Final = 100
CLAIM_BYTES: Final = 256 * 1024


class Script:
    """A script by its text and its digest."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text.encode()
        self.digest = sha1(self.text, usedforsecurity=False).hexdigest().encode()

    def __repr__(self) -> str:
        return f"<Script {self.name}>"


_BEGINNING: Final = """
redis.call('HDEL', KEYS[1], '')
redis.call('ZREM', KEYS[2], '')
local number, count, bytes = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
"""
_TAKING: Final = """
local taken, values, scores = {}, {}, {}
for place = first_list, #KEYS do
    while count > 0 and bytes > 0 do
        local raw = redis.pcall('RPOP', KEYS[place])
        if not raw or type(raw) == 'table' then break end
        local field = ARGV[1] .. string.format('%d', number)
        taken[#taken + 1] = raw
        values[#values + 1] = field
        values[#values + 1] = '[' .. raw .. ARGV[5]
        scores[#scores + 1] = ARGV[6]
        scores[#scores + 1] = field
        number, count, bytes = number + 1, count - 1, bytes - #raw
    end
end
if #taken > 0 then
    redis.call('HSET', KEYS[1], unpack(values))
    redis.call('ZADD', KEYS[2], unpack(scores))
end
"""

#: Moves messages from the lists of a queue to what this consumer holds, and returns them.
#:
#: Keys: unacked, its index, the lists.  Arguments: what the fields begin with, the number of the first
#: field, how many messages and bytes at most, what follows a message in its value, the client's time.
CLAIM: Final = Script("claim", _BEGINNING + "local first_list = 3" + _TAKING + "return taken")

#: Milliseconds for which it is remembered who has the active consumer of a queue without messages.
ACTIVE_KEPT: Final = 7 * 24 * 3600 * 1000

#: The same for a queue with a single active consumer; nil while that is another owner's.  It is until
#: that has left, or its lease has ended and all that it held was requeued: then it is no owner any more.
#:
#: Keys: unacked, its index, who has the active consumer, the owners, the lists.  Arguments: as above;
#: the fields begin with ``gc.``, the owner and a dot.
CLAIM_ACTIVE: Final = Script(
    "claim-active",
    f"""
local owner = string.match(ARGV[1], '^gc%.([^.]+)%.')
local active = redis.call('GET', KEYS[3])
if active ~= owner then
    if active and redis.call('ZSCORE', KEYS[4], active) then return false end
    redis.call('SET', KEYS[3], owner, 'PX', {ACTIVE_KEPT})
elseif redis.call('PTTL', KEYS[3]) < {ACTIVE_KEPT // 2} then
    redis.call('PEXPIRE', KEYS[3], {ACTIVE_KEPT})
end
"""
    + _BEGINNING
    + "local first_list = 5"
    + _TAKING
    + "return taken",
)

#: Notes that an owner has no active consumer of a queue any more.
#:
#: Keys: who has it.  Arguments: the owner.
STAND_DOWN: Final = Script(
    "stand-down",
    "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end",
)

#: The same from one list, of the messages up to a given one, and how many of them are left, as a text
#: behind them; nothing when that message is gone.
#:
#: To look for the message compares all that are in front of it, which for each hundred of a long queue
#: would take the square of its length.  So the caller says where the message is unless others have taken
#: or requeued any, and that place is looked at first: it is found by counting the list's nodes.
#:
#: Keys: unacked, its index, the list.  Arguments: as above, the newest message to be taken, and how many
#: there are up to it, as far as is known; 0: it is not.
EXPIRE: Final = Script(
    "expire",
    _BEGINNING
    + """
local left = tonumber(ARGV[8])
if left <= 0 or redis.call('LINDEX', KEYS[3], -left) ~= ARGV[7] then
    local at = redis.call('LPOS', KEYS[3], ARGV[7], 'RANK', -1)
    if not at then return {} end
    left = redis.call('LLEN', KEYS[3]) - at
end
count = math.min(count, left)
local first_list = 3
"""
    + _TAKING
    + """
taken[#taken + 1] = string.format('%d', left - #taken)
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

#: Moves messages from what a consumer holds into lists, and returns how many it still held.  One that
#: goes back to its queue goes with it where that has ended by itself, and was not declared anew.
#:
#: Keys: unacked, its index, the owners, the queues that have ended, declarations of queues, the lists.
#: Arguments: an owner who must be dead, or nothing; the number of the declarations; the names of their
#: queues; then for each message its field, which of these queues it goes with (0: none), RPUSH (to the
#: head) or LPUSH, the number of its lists, and what goes into each of them.
MOVE: Final = Script(
    "move",
    """
redis.call('HDEL', KEYS[1], '')
redis.call('ZREM', KEYS[2], '')
local queues, gone = tonumber(ARGV[2]), {}
for place = 5 + queues, #KEYS do redis.call('LTRIM', KEYS[place], 0, -1) end
if ARGV[1] ~= '' then
    local expiry = redis.call('ZSCORE', KEYS[3], ARGV[1])
    local now = redis.call('ZSCORE', KEYS[3], 'clock') or 0
    if expiry and tonumber(expiry) > tonumber(now) then return -1 end
end
for queue = 1, queues do
    -- Looks by writes that change nothing: see the rules for scripts.
    local has_ended = redis.call('ZADD', KEYS[4], 'XX', 'INCR', 0, ARGV[2 + queue])
    if has_ended and redis.call('SET', KEYS[4 + queue], '', 'NX') then
        redis.call('DEL', KEYS[4 + queue])
        gone[queue] = true
    end
end
local moved, place, at = 0, 5 + queues, 3 + queues
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

#: Appends a message to a queue that may end at any time, unless it has ended; returns 0 then.
#:
#: Keys: the declaration, the list.  Arguments: the message.
PUSH: Final = Script(
    "push",
    """
-- A look by a write: see the rules for scripts.
if redis.call('SET', KEYS[1], '', 'NX') then
    redis.call('DEL', KEYS[1])
    return 0
end
return redis.call('LPUSH', KEYS[2], ARGV[1])
""",
)

#: Stores a message that is delayed, by the server's clock; see ``maintenance``.
#:
#: Keys: the delayed messages.  Arguments: milliseconds, the message with where it goes.
DELAY: Final = Script(
    "delay",
    """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[2])
return 1
""",
)

#: Stores delayed messages in the places of those that a consumer holds, and returns how many it still
#: held.
#:
#: Keys: unacked, its index, the delayed messages.  Arguments: for each message its field, milliseconds,
#: and the one that takes its place, with where that goes.
DEFER: Final = Script(
    "defer",
    """
redis.call('HDEL', KEYS[1], '')
redis.call('ZREM', KEYS[2], '')
redis.call('ZREM', KEYS[3], '')
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local deferred = 0
for at = 1, #ARGV, 3 do
    if redis.call('HDEL', KEYS[1], ARGV[at]) == 1 then
        redis.call('ZADD', KEYS[3], now + ARGV[at + 1], ARGV[at + 2])
        deferred = deferred + 1
    end
    redis.call('ZREM', KEYS[2], ARGV[at])
end
return deferred
""",
)

#: Moves delayed messages that are due into their lists; returns the milliseconds until the next one
#: is due, -1 where none is left.  What its list refuses is tried again after a minute, as is what this
#: user may not touch.
#:
#: The server must know all keys beforehand, or while a cluster moves them to another node a list could
#: be begun there that is still here, and a declaration seem to be gone.  So where some of them are
#: missing below, it returns those of the messages that are due.
#:
#: Keys: the delayed messages; the lists and the declarations that may be used.  Arguments: messages and
#: bytes at most; the lists and the declarations that this user may not touch.
PROMOTE: Final = Script(
    "promote",
    """
redis.call('ZREM', KEYS[1], '')
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local count, bytes = tonumber(ARGV[1]), tonumber(ARGV[2])
local known, refused = {['']=true}, {}
for place = 2, #KEYS do known[KEYS[place]] = true end
for place = 3, #ARGV do
    known[ARGV[place]], refused[ARGV[place]] = true, true
end
local function read(place)
    local found = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '+inf', 'WITHSCORES', 'LIMIT', place, 1)
    if #found == 0 then return end
    local text = found[1]
    local key, needed, at = string.match(text, '^(%d+):(%d+):()')
    local list, behind = string.sub(text, at, at + key - 1), at + key + needed
    local left = math.ceil(tonumber(found[2]) - now)
    return text, left, list, string.sub(text, at + key, behind - 1), behind
end
local function unknown()
    local keys, place, read_bytes = {}, 0, 0
    while place < count and read_bytes < bytes do
        local text, left, list, declared = read(place)
        if not text or left > 0 then break end
        keys[#keys + 1] = list
        if declared ~= '' then keys[#keys + 1] = declared end
        place, read_bytes = place + 1, read_bytes + #text
    end
    return keys
end
while true do
    local text, left, list, declared, at = read(0)
    if not text then return -1 end
    if left > 0 then return left end
    if count <= 0 or bytes <= 0 then return 0 end
    if not (known[list] and known[declared]) then return unknown() end
    local is_stored = not (refused[list] or refused[declared])
    if is_stored and (declared == '' or redis.call('EXISTS', declared) == 1) then
        local reply = redis.pcall('LPUSH', list, string.sub(text, at))
        is_stored = type(reply) ~= 'table'
    end
    if is_stored then
        redis.call('ZREM', KEYS[1], text)
    else
        redis.call('ZADD', KEYS[1], now + 60000, text)
    end
    count, bytes = count - 1, bytes - #text
end
""",
)

#: Tells that an owner lives.  Returns 0 where its lease had ended, or it is new, else 1; then which of
#: the fields it holds no more, counted from 0: others have requeued them.
#:
#: Keys: the owners, the index, the held messages.  Arguments: owner, milliseconds of its lease, the
#: client's time, the fields.
RENEW: Final = Script(
    "renew",
    """
redis.call('ZREM', KEYS[1], '')
local now = redis.call('ZSCORE', KEYS[1], 'clock') or 0
local expiry = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
local reply = {expiry and tonumber(expiry) > tonumber(now) and 1 or 0}
for at = 4, #ARGV do
    if redis.call('ZADD', KEYS[2], 'XX', 'CH', ARGV[3], ARGV[at]) == 0 and
        not redis.call('HGET', KEYS[3], ARGV[at]) then
        reply[#reply + 1] = at - 4
    end
end
return reply
""",
)

#: Advances the time of the leases, unless another client has done so since it was read last; returns
#: 1 where it did so, and the time.
#:
#: Keys: the owners.  Arguments: the time as it was read last, the milliseconds since then.
ADVANCE: Final = Script(
    "advance",
    """
redis.call('ZREM', KEYS[1], '')
local now = redis.call('ZSCORE', KEYS[1], 'clock') or ''
if now ~= ARGV[1] then return {0, now} end
return {1, redis.call('ZINCRBY', KEYS[1], ARGV[2], 'clock')}
""",
)

#: Notes that an owner consumes from a queue, and returns how many consumers others have there; -1: it
#: may not, since one of them wants to be alone.  Dead ones are forgotten by who joins only: an
#: auto-delete queue all of whose consumers are dead differs from one that never had any.
#:
#: Keys: who consumes from it, all owners.  Arguments: the owner, and ``exclusive``, or how many
#: consumers it has now, or nothing: it only asks.
JOIN: Final = Script(
    "join",
    """
redis.call('HDEL', KEYS[1], '')
local now = tonumber(redis.call('ZSCORE', KEYS[2], 'clock') or 0)
local all, others = redis.call('HGETALL', KEYS[1]), 0
for at = 1, #all, 2 do
    if all[at] ~= ARGV[1] then
        local expiry = redis.call('ZSCORE', KEYS[2], all[at])
        if expiry and tonumber(expiry) > now then
            local alone = all[at + 1] == 'exclusive' or ARGV[2] == 'exclusive'
            if alone and ARGV[2] ~= '' then return -1 end
            others = others + (tonumber(all[at + 1]) or 1)
        elseif ARGV[2] ~= '' then
            redis.call('HDEL', KEYS[1], all[at])
        end
    end
end
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
return others
""",
)

#: Returns how many other links consume from a queue: those whose leases have not ended.  It changes
#: nothing, and so registers who asks: the server pushes when one joins or leaves.
#:
#: Keys: who consumes from it, all owners.  Arguments: who asks.
RIVALS: Final = Script(
    "rivals",
    """
local now, rivals = tonumber(redis.call('ZSCORE', KEYS[2], 'clock') or 0), 0
for _, other in ipairs(redis.call('HKEYS', KEYS[1])) do
    local expiry = redis.call('ZSCORE', KEYS[2], other)
    if other ~= ARGV[1] and expiry and tonumber(expiry) > now then rivals = rivals + 1 end
end
return rivals
""",
)

#: What :data:`DROP` returns in the place of a count where it needs further keys.
MORE: Final = -2

#: Deletes a queue with its messages and its bindings; returns how many messages it had (-1: it
#: stays), and the exchanges that have no bindings any more.  As the server must know all keys
#: beforehand, it returns :data:`MORE` and exchanges where their tables are missing below.
#:
#: Keys: its declaration, who consumes from it, its bindings, the exclusive queues, those that end by
#: themselves, all owners, those that have ended, the two tables of each exchange that it is bound to,
#: its lists.  Arguments: its name, why, who asks, a declaration, these exchanges.  Why:
#:
#: - nothing: it is in use.  The bindings that kombu made go, too.
#: - ``left``: who asks has left an auto-delete queue.  It stays while others consume from it.
#: - ``gone``: its owner is; it must be declared as given.
#: - ``dead``: it must be declared as given, and must have had consumers, all of them dead.
#: - ``expired``: its declaration has expired.  Messages that are still there get a minute, since a
#:   program of kombu may consume them.
DROP: Final = Script(
    "drop",
    """
redis.call('HDEL', KEYS[2], '')
local why = ARGV[2]
local now = tonumber(redis.call('ZSCORE', KEYS[6], 'clock') or 0)
local function lives(owner)
    local expiry = redis.call('ZSCORE', KEYS[6], owner)
    return expiry and tonumber(expiry) > now
end
if why == 'left' then redis.call('HDEL', KEYS[2], ARGV[3]) end
if why == 'expired' and redis.call('EXISTS', KEYS[1]) == 1 then return {-1} end
if (why == 'gone' or why == 'dead') and redis.call('GET', KEYS[1]) ~= ARGV[4] then return {-1} end
if why == 'dead' and redis.call('EXISTS', KEYS[2]) == 0 then return {-1} end
if why == 'left' or why == 'dead' then
    for _, other in ipairs(redis.call('HKEYS', KEYS[2])) do
        if lives(other) then return {-1} end
    end
end
local tables, lists = {}, 2 * #ARGV
for at = 5, #ARGV do tables[ARGV[at]] = 2 * at - 2 end
local bound, unknown = redis.call('HGETALL', KEYS[3]), {-2}
local bindings = {}
for at = 1, #bound, 2 do
    if why == '' or bound[at + 1] == '1' then
        local cut = string.find(bound[at], '\\0', 1, true)
        local exchange = string.sub(bound[at], 1, cut - 1)
        if not tables[exchange] then unknown[#unknown + 1] = exchange end
        bindings[#bindings + 1] = {exchange, string.sub(bound[at], cut + 1)}
    end
end
if #unknown > 1 then return unknown end
local found = {0}
for place = lists, #KEYS do found[1] = found[1] + redis.call('LLEN', KEYS[place]) end
for place = lists, #KEYS do
    if why ~= 'expired' then
        redis.call('DEL', KEYS[place])
    elseif redis.call('PTTL', KEYS[place]) == -1 then
        redis.call('PEXPIRE', KEYS[place], 60000)
    end
end
for _, binding in ipairs(bindings) do
    local exchange, member = binding[1], binding[2]
    local place = tables[exchange]
    local there = redis.call('SREM', KEYS[place], member)
    redis.call('SREM', KEYS[place + 1], member)
    if there == 1 and redis.call('EXISTS', KEYS[place]) == 0 then found[#found + 1] = exchange end
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
redis.call('HDEL', KEYS[4], ARGV[1])
redis.call('SREM', KEYS[5], ARGV[1])
if why ~= '' then
    -- What dead consumers hold is not given back to it.
    redis.call('ZADD', KEYS[7], now, ARGV[1])
end
return found
""",
)

#: Keeps the declaration of a queue unless there is one.  All at once, so that a sweeper that looks
#: meanwhile, or the end of who declares, leaves no queue that is never deleted.
#:
#: Keys: its declaration, those that end by themselves, those whose messages expire, the exclusive
#: ones.  Arguments: its name, the declaration, milliseconds without use after which it expires,
#: whether it ends by itself, whether its messages expire, who owns it; the last four may be nothing.
DECLARE: Final = Script(
    "declare",
    """
if redis.call('EXISTS', KEYS[1]) == 1 then return end
if ARGV[4] ~= '' then redis.call('SADD', KEYS[2], ARGV[1]) end
if ARGV[5] ~= '' then redis.call('SADD', KEYS[3], ARGV[1]) end
if ARGV[6] ~= '' then redis.call('HSET', KEYS[4], ARGV[1], ARGV[6]) end
redis.call('SET', KEYS[1], ARGV[2])
if ARGV[3] ~= '' then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
""",
)

#: Adds a binding of a queue to kombu's tables, and notes whether it was there before; returns -1, and
#: adds nothing, where the queue has ended.
#:
#: Keys: the table; the permanent bindings, or where the queue expires the deadlines of tables; the
#: bindings of the queue; its declaration, if it has one.  Arguments: the binding, its field in the
#: bindings of the queue, the exchange, milliseconds or nothing.
BIND: Final = Script(
    "bind",
    """
if KEYS[4] and redis.call('EXISTS', KEYS[4]) == 0 then return -1 end
local made = redis.call('SADD', KEYS[1], ARGV[1])
if ARGV[4] == '' then
    redis.call('SADD', KEYS[2], ARGV[1])
else
    -- The server's time, since kombu's programs read these deadlines by it.
    local time = redis.call('TIME')
    local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
    redis.call('ZADD', KEYS[2], 'GT', now + tonumber(ARGV[4]), ARGV[3])
end
redis.call('HSETNX', KEYS[3], ARGV[2], made)
return 0
""",
)


def entry_suffix(queue: str) -> bytes:
    """Return the end of a message's entry: exchange and routing key, as kombu reads them."""
    return f', "", {dumps(queue)}]'.encode()


def mark() -> bytes:
    """Return the time now, in seconds since 1970, as a score of ``unacked_index`` (kombu's way)."""
    return b"%.6f" % time()


class Scripts:
    """Calls of scripts over one connection: which of them the server has seen on it."""

    def __init__(self) -> None:
        self._seen: set[Script] = set()

    def call(self, script: Script, keys: tuple[bytes, ...], *args: Argument) -> bytes:
        """Return the command that runs *script*; it must be written, and in this order."""
        if script in self._seen:
            return pack(b"EVALSHA", script.digest, len(keys), *keys, *args)
        self._seen.add(script)
        return pack(b"EVAL", script.text, len(keys), *keys, *args)

    def forget(self) -> None:
        """Forget that the server has the scripts."""
        self._seen.clear()

    @staticmethod
    def claim_frame(
        script: Script, keys: tuple[bytes, ...], prefix: bytes, suffix: bytes
    ) -> tuple[bytes, bytes]:
        """Return the bytes around number and count of a claim with fixed keys.

        The client's time comes last, behind both.
        The script must have been called on this connection before.
        """
        parts: tuple[Argument, ...] = (b"EVALSHA", script.digest, len(keys), *keys, prefix)
        front = b"*%d\r\n%b" % (len(parts) + 5, b"".join(map(bulk, parts)))
        return front, bulk(CLAIM_BYTES) + bulk(suffix)
