"""The commands of one link, against servers that do what a real one does seldom."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gevent import socket
from gevent.event import Event

from greenconn.green.deadline import Deadline
from greenconn.green.stream import connect_tcp
from greenconn.transport.redis.errors import LinkLost, NotRedis
from greenconn.transport.redis.options import Keys, RedisOptions
from greenconn.transport.redis.pipeline import PING, Commands, Pipeline, check_reply
from greenconn.transport.redis.scripts import ADVANCE, DROP, JOIN, MOVE
from greenconn.wire.resp import pack
from tests.fix_peer import PeerFactory
from tests.unit.transport.redis.test_pipeline import SOON, answering

Begun = Callable[..., Commands]
ANSWERS = {
    b"EVAL": b":7\r\n",
    b"EVALSHA": b"-NOSCRIPT No matching script.\r\n",
    b"EXISTS": b":1\r\n",
    b"GET": b"$1\r\nv\r\n",
    b"HDEL": b":1\r\n",
}


class Server:
    """Forgets its scripts after each that it was told the text of, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def answer(self, command: list[bytes]) -> bytes:
        self.asked.append(command[0])
        return ANSWERS.get(command[0], b"+OK\r\n")


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def begun(peer: PeerFactory, server: Server) -> Iterator[Begun]:
    """Commands of a link to that server."""
    pipelines: list[Pipeline] = []

    def begin(protocol: int = 2, before_call: Callable[[], None] = lambda: None) -> Commands:
        handler: Callable[[socket.socket], Any] = answering(server.answer)
        place = peer(handler)
        sock = connect_tcp(place.host, place.port, Deadline(SOON))
        ignore: Callable[[Any], None] = lambda what: None  # noqa: E731
        pipelines.append(Pipeline(sock, "redis://peer", ignore, ignore))
        options = RedisOptions()
        commands = Commands("redis://peer", Keys(options), options, before_call)
        commands.begin(pipelines[-1], protocol, "owner")
        return commands

    yield begin
    for each in pipelines:
        each.close()


def test_a_script_that_the_server_has_forgotten_is_sent_again(begun: Begun, server: Server) -> None:
    commands = begun()
    results = [commands.run(MOVE, (b"k",) * 3, "", 0, what="testing") for _ in range(2)]
    assert results == [7, 7]
    assert server.asked[-2:] == [b"EVALSHA", b"EVAL"]


def test_a_posted_script_that_the_server_has_forgotten_is_sent_again(
    begun: Begun, server: Server
) -> None:
    commands = begun()
    replies: list[Any] = []
    both = Event()

    def done(reply: Any) -> None:
        replies.append(reply)
        if len(replies) == 2:
            both.set()

    for _ in range(2):
        commands.post_script(MOVE, (b"k",) * 3, "", 0, done=done)
    assert both.wait(SOON)
    assert replies == [7, 7]


def test_a_reply_of_another_kind_ends_the_socket(begun: Begun) -> None:
    commands = begun()
    with pytest.raises(LinkLost, match="connection lost"):
        commands.call(pack("LLEN", "k"))
    with pytest.raises(LinkLost):
        commands.call(PING)


# -- replies of a form that no Redis gives

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
