"""Servers that log a client in as they should, and then say anything."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
from amqp import spec
from gevent import socket
from redis.exceptions import RedisError

import greenconn
from greenconn import Connection, Consumer, Exchange, Queue
from greenconn.exceptions import AMQPError, KombuError
from greenconn.transport.amqp.link import AmqpLink
from greenconn.wire.resp import RespParser
from tests.fix_amqp import BrokerEnd, Links, Method
from tests.fix_peer import Peer
from tests.integration.contract import Store

#: What a call may raise whatever its peer does.
DOCUMENTED = (AMQPError, KombuError, OSError, RedisError)
#: Seconds for one case; a call that takes longer hangs.
LIMIT = 30.0
#: Seconds that a Redis may be silent.
SILENCE = 0.1
#: Seconds for a login to a Redis, whose answers may be no answers.
LOGIN = 1.0
TUNE = (2047, 131072, 0)


class _Note(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.ERROR)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


@contextmanager
def peer_of(handler: Callable[[socket.socket], object]) -> Iterator[Peer]:
    """A server for one case; no greenlet of the library may end with an error meanwhile."""
    failed: list[logging.LogRecord] = []
    logger = logging.getLogger("greenconn.green")
    note = _Note(failed)
    logger.addHandler(note)
    peer = Peer(handler)
    try:
        with gevent.Timeout(LIMIT, AssertionError("it hangs")):
            yield peer
    finally:
        peer.stop()
        logger.removeHandler(note)
    assert not failed, failed[0].getMessage()


def outcome(function: Callable[[], Any]) -> Any:
    """What a call returned, or what it may raise."""
    try:
        return function()
    except DOCUMENTED as exc:
        return exc


class _Hostile(BrokerEnd):
    """Says *data* when the client sends *moment*, then hangs up."""

    def __init__(self, client: socket.socket, moment: Method | None, data: bytes) -> None:
        super().__init__(client, TUNE)
        self.moment = moment
        self.data = data

    def start(self) -> None:
        if self.moment is None:
            self.say()
        super().start()

    def _on_method(self, channel: int, method: Method, arguments: bytes) -> None:
        if method == self.moment:
            self.say()
        super()._on_method(channel, method, arguments)

    def say(self) -> None:
        """Say it."""
        self.send(self.data)
        raise ConnectionResetError


def log_in(moment: Method | None, data: bytes) -> None:
    """Log in to a broker that says *data* at some moment of the handshake."""

    def serve(client: socket.socket) -> None:
        _Hostile(client, moment, data).serve()

    with peer_of(serve) as peer:
        links = Links(f"amqp://u:p@{peer.host}:{peer.port}/")
        outcome(lambda: links(connect_timeout=LIMIT / 2))
        links.close()


def work(data: bytes) -> list[Any]:
    """Consume, call, publish and drain at a broker that then says *data* and hangs up.

    Returns:
        The messages that came.
    """
    ends: list[BrokerEnd] = []

    def serve(client: socket.socket) -> None:
        end = BrokerEnd(client, TUNE)
        end.answers = {
            spec.Basic.Consume: (spec.Basic.ConsumeOk, "s", "tag"),
            spec.Confirm.Select: (spec.Confirm.SelectOk,),
        }
        ends.append(end)
        end.serve()

    with peer_of(serve) as peer:
        links = Links(f"amqp://u:p@{peer.host}:{peer.port}/")
        link = links()
        store = Store()
        calls = [gevent.spawn(outcome, call) for call in _calls(link, store)]
        ends[0].expect(spec.Basic.Get)
        ends[0].expect(spec.Basic.Publish)
        try:
            ends[0].send(data)
            ends[0].client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has heard enough
        gevent.joinall(calls, raise_error=True)
        links.close()
    return list(store)


def _calls(link: AmqpLink, store: Store) -> list[Callable[[], Any]]:
    first, second, third = link.channel(), link.channel(), link.channel()
    first.basic_consume("q", "tag", sink=store)
    second.basic_consume("q", "tag", callback=store.append)

    def drain() -> None:
        while True:
            link.drain(LIMIT)

    message = third.prepare_message(b"body")
    return [
        drain,
        lambda: first.queue_declare("q"),
        lambda: store.append(second.basic_get("q")),
        lambda: third.basic_publish_confirm(message, "", "q", mandatory=True, timeout=LIMIT),
    ]


_GREETINGS = {
    b"HELLO": b"%1\r\n+proto\r\n:3\r\n",
    b"SELECT": b"+OK\r\n",
    b"ROLE": b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n",
    b"CLIENT": b"+OK\r\n",
    b"PING": b"+PONG\r\n",
}


def converse(replies: list[bytes]) -> None:
    """Do everything with a Redis that logs us in and answers anything then, one after the other."""
    left = list(replies)

    def serve(client: socket.socket) -> None:
        parser = RespParser()
        while data := client.recv(65536):
            answer = []
            for command in parser.feed(data):
                if command[0] not in _GREETINGS and not left:
                    return
                answer.append(_GREETINGS.get(command[0]) or left.pop(0))
            client.sendall(b"".join(answer))

    with peer_of(serve) as peer:
        url = f"redis://127.0.0.1:{peer.port}/0"
        options = {"reply_timeout": SILENCE}
        connection = Connection(url, connect_timeout=LOGIN, transport_options=options)
        for act in (_declare, _publish, _get, _consume, _bind, _spawn):
            if not left:
                break
            outcome(lambda act=act: act(connection))  # type: ignore[misc]
        outcome(connection.close)


def _declare(connection: Connection) -> None:
    with connection.channel() as channel:
        channel.queue_declare("q", durable=True)
        channel.queue_declare("q", passive=True)
        channel.queue_purge("q")


def _publish(connection: Connection) -> None:
    with connection.channel() as channel:
        message = channel.prepare_message(b"body")
        channel.basic_publish(message, "", "q", mandatory=True, timeout=LIMIT)
        channel.basic_publish(message, "amq.direct", "q", timeout=LIMIT)


def _bind(connection: Connection) -> None:
    with connection.channel() as channel:
        Queue("bound", Exchange("e", "topic"), routing_key="#")(channel).declare()
        channel.queue_delete("bound")


def _get(connection: Connection) -> None:
    with connection.channel() as channel:
        while (message := channel.basic_get("q")) is not None:
            repr(message)
            message.reject()


def _consume(connection: Connection) -> None:
    with (
        connection.channel() as channel,
        Consumer(
            channel,
            [Queue("q", no_declare=True)],
            callbacks=[lambda body, message: message.requeue()],
            on_decode_error=lambda message, exc: message.ack(),
        ),
    ):
        connection.drain_events(timeout=0.05)


def _spawn(connection: Connection) -> None:
    consumer = greenconn.spawn_consumer("q", lambda body, message: None, connection=connection)
    try:
        consumer.wait_ready(0.05)
    finally:
        consumer.kill(timeout=LIMIT / 3)
        if consumer.ready():
            outcome(consumer.get)
