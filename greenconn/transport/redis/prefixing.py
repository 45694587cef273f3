"""Key prefixes: the positions of keys in Redis' commands."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["prefixed"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Their first argument is the key.
_FIRST: Final = _words(
    """
    APPEND BITCOUNT BITFIELD BITFIELD_RO BITPOS DECR DECRBY DUMP EXPIRE EXPIREAT EXPIRETIME GEOADD
    GEODIST GEOHASH GEOPOS GEOSEARCH GET GETBIT GETDEL GETEX GETRANGE GETSET HDEL HEXISTS HGET
    HGETALL HINCRBY HINCRBYFLOAT HKEYS HLEN HMGET HMSET HRANDFIELD HSCAN HSET HSETNX HSTRLEN HVALS
    INCR INCRBY INCRBYFLOAT LINDEX LINSERT LLEN LPOP LPOS LPUSH LPUSHX LRANGE LREM LSET LTRIM MOVE
    PERSIST PEXPIRE PEXPIREAT PEXPIRETIME PFADD PSETEX PTTL PUBLISH RESTORE RPOP RPUSH RPUSHX SADD
    SCARD SET SETBIT SETEX SETNX SETRANGE SISMEMBER SMEMBERS SMISMEMBER SORT_RO SPOP SRANDMEMBER
    SREM SSCAN STRLEN SUBSTR TTL TYPE XACK XADD XAUTOCLAIM XCLAIM XDEL XLEN XPENDING XRANGE
    XREVRANGE XTRIM ZADD ZCARD ZCOUNT ZINCRBY ZLEXCOUNT ZMSCORE ZPOPMAX ZPOPMIN ZRANDMEMBER ZRANGE
    ZRANGEBYLEX ZRANGEBYSCORE ZRANK ZREM ZREMRANGEBYLEX ZREMRANGEBYRANK ZREMRANGEBYSCORE ZREVRANGE
    ZREVRANGEBYLEX ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE
    """
)
#: All their arguments are keys.
_ALL: Final = _words(
    """
    DEL EXISTS MGET PFCOUNT PFMERGE SDIFF SDIFFSTORE SINTER SINTERSTORE SUNION SUNIONSTORE TOUCH
    UNLINK WATCH
    """
)
#: All but the last.
_BUT_LAST: Final = _words(
    """
    BLPOP BRPOP BZPOPMIN BZPOPMAX
    """
)
#: The first two.
_TWO: Final = _words(
    """
    BLMOVE BRPOPLPUSH COPY LMOVE RENAME RENAMENX RPOPLPUSH SMOVE ZRANGESTORE
    """
)
#: Each other one, from the first.
_PAIRS: Final = _words(
    """
    MSET MSETNX
    """
)
#: A number says how many keys follow; it is the argument of this index.
_COUNTED: Final = {
    "EVAL": 1,
    "EVALSHA": 1,
    "EVAL_RO": 1,
    "EVALSHA_RO": 1,
    "FCALL": 1,
    "FCALL_RO": 1,
}
#: A destination, then such a number.
_STORED: Final = _words(
    """
    ZDIFFSTORE ZINTERSTORE ZUNIONSTORE
    """
)
#: They have no keys.
_NONE: Final = _words(
    """
    ACL AUTH BGREWRITEAOF BGSAVE CLIENT CLUSTER COMMAND CONFIG DBSIZE DISCARD ECHO EXEC FLUSHALL
    FLUSHDB FUNCTION HELLO INFO LASTSAVE LATENCY MODULE MULTI PING PUBSUB RANDOMKEY READONLY
    READWRITE ROLE SAVE SCRIPT SELECT SHUTDOWN SLOWLOG SWAPDB TIME UNWATCH WAIT
    """
)


def prefixed(prefix: str, command: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return *command* with *prefix* before its keys.

    Raises:
        NotImplementedError: where its keys stand is not known.
    """
    words = str(command[0]).upper().split()
    name, args = words[0], list(command[1:])
    if name in _FIRST:
        places = range(min(1, len(args)))
    elif name in _ALL:
        places = range(len(args))
    elif name in _BUT_LAST:
        places = range(len(args) - 1)
    elif name in _TWO:
        places = range(min(2, len(args)))
    elif name in _PAIRS:
        places = range(0, len(args), 2)
    elif name in _COUNTED:
        at = _COUNTED[name]
        places = range(at + 1, at + 1 + int(args[at]))
    elif name in _STORED:
        args[0] = _with(prefix, args[0])
        places = range(2, 2 + int(args[1]))
    elif name in _NONE:
        places = range(0)
    else:
        raise NotImplementedError(
            f"channel.client does not know which arguments of {name} are keys, and global_keyprefix "
            f"{prefix!r} must go before them: use a redis.Redis of your own"
        )
    for place in places:
        args[place] = _with(prefix, args[place])
    return (command[0], *args)


def _with(prefix: str, key: Any) -> Any:
    if isinstance(key, (bytes, bytearray, memoryview)):
        return prefix.encode() + bytes(key)
    return f"{prefix}{key}"
