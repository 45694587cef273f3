"""What clients of message brokers were seen to do wrong: the same few lines run with each client.

A case takes a client (the module ``greenconn`` or ``kombu``) and the brokers' addresses, and returns
what it measured.  The process is monkey-patched, as programs on kombu are that use gevent.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, Final, NamedTuple
from uuid import uuid4

import gevent
from amqp import spec
from gevent import socket, ssl

from tests.brokers.tls import CERTS
from tests.fix_amqp import AmqpPeer, BrokerEnd
from tests.fix_peer import Peer

SECRET: Final = "s3cr3tw0rd"


class Urls(NamedTuple):
    """Where the brokers are."""

    amqp: str
    redis: str


Measure = Callable[[Any, Urls], dict[str, Any]]


class Case(NamedTuple):
    """One thing that clients do wrong.

    Attributes:
        title: what it is.
        measure: does it, and returns what came of it.
        is_right: whether that is as it should be.
    """

    title: str
    measure: Measure
    is_right: Callable[[dict[str, Any]], bool]


CASES: dict[str, Case] = {}


def case(title: str, is_right: Callable[[dict[str, Any]], bool]) -> Callable[[Measure], Measure]:
    """Add a case; its name is the function's."""

    def register(measure: Measure) -> Measure:
        CASES[measure.__name__.replace("_", "-")] = Case(title, measure, is_right)
        return measure

    return register


def _peer(handler: Callable[[socket.socket], object]) -> Peer:
    return Peer(handler)


@contextmanager
def _scripted(prepare: Callable[[BrokerEnd], None] = lambda end: None) -> Any:
    """A scripted AMQP broker."""
    made: list[Peer] = []

    def start(handler: Callable[[socket.socket], object]) -> Peer:
        made.append(Peer(handler))
        return made[0]

    peer = AmqpPeer(start, (2047, 131072, 0))
    peer.prepare = prepare
    try:
        yield peer
    finally:
        made[0].stop()


def _new_queue(client: Any, channel: Any, prefix: str = "sin") -> Any:
    queue = client.Queue(f"{prefix}-{uuid4().hex}", durable=False, auto_delete=True, exclusive=True)
    bound = queue(channel)
    bound.declare()
    return bound


@case(
    "a killed caller's reply is given to the next caller", lambda found: found["wrong_replies"] == 0
)
def killed_callers_reply(client: Any, urls: Urls) -> dict[str, Any]:
    """Kill a call whose reply is on its way, then make another: whose reply does it get?"""
    wrong_replies, calls = 0, 20
    for _ in range(calls):
        with client.Connection(urls.amqp) as connection:
            channel = connection.channel()
            names = [f"sin-{uuid4().hex}" for _ in range(2)]
            options = {"exclusive": True, "auto_delete": True, "durable": False}
            killed = gevent.spawn(channel.queue_declare, names[0], **options)
            gevent.sleep(0)
            killed.kill()
            with gevent.Timeout(10):
                wrong_replies += channel.queue_declare(names[1], **options).queue != names[1]
    return {"calls": calls, "wrong_replies": wrong_replies}


@case("a publish's timeout begins anew with every heartbeat", lambda found: found["seconds"] < 1.5)
def timeout_and_heartbeats(client: Any, urls: Urls) -> dict[str, Any]:
    """Publish with half a second for the confirm, to a broker that sends heartbeats instead."""
    most = 5.0

    def prepare(end: BrokerEnd) -> None:
        take = end._on_method

        def on_method(channel: int, method: Any, arguments: bytes) -> None:
            take(channel, method, arguments)
            if method == spec.Confirm.Select and not arguments[0]:  # else it waits for nothing
                end.method(channel, spec.Confirm.SelectOk)

        end._on_method = on_method  # type: ignore[method-assign]

    def beat(peer: AmqpPeer) -> None:
        with suppress(OSError):
            while True:
                gevent.sleep(0.2)
                peer.end.send(b"\x08\0\0\0\0\0\0\xce")

    with _scripted(prepare) as peer:
        options = {"confirm_publish": True}
        connection = client.Connection(peer.url, transport_options=options)
        producer = client.Producer(connection.channel())
        beating = gevent.spawn(beat, peer)
        began, ended = monotonic(), "it raised"
        try:
            with suppress(gevent.Timeout), gevent.Timeout(most):
                try:
                    producer.publish("x", routing_key="q", timeout=0.5, confirm_timeout=0.5)
                except OSError as exc:
                    ended = f"it raised {type(exc).__name__}"
        finally:
            seconds = monotonic() - began
            beating.kill()
            with suppress(Exception), suppress(gevent.Timeout), gevent.Timeout(3):
                connection.close()
    return {
        "asked": 0.5,
        "seconds": round(seconds, 1),
        "ended": ended if seconds < most else "never",
    }


@case("processes after fork() steal each other's confirms", lambda found: found["confirmed"] == 100)
def fork_and_confirms(client: Any, urls: Urls) -> dict[str, Any]:
    """Five forked processes publish 20 messages each on the connection that they inherited."""
    connection = client.Connection(urls.amqp, transport_options={"confirm_publish": True})
    name = f"sin-{uuid4().hex}"
    producer = connection.Producer()
    producer.publish("from the parent", routing_key=name)
    reading, writing = os.pipe()
    children = []
    for _ in range(5):
        child = os.fork()
        if not child:
            _publish_as_child(producer, name, writing)
        children.append(child)
    os.close(writing)
    for child in children:
        os.waitpid(child, 0)
    with os.fdopen(reading) as lines:
        results = [json.loads(line) for line in lines]
    return {
        "published": 100,
        "confirmed": sum(each["confirmed"] for each in results),
        "errors": sorted({each["error"] for each in results if each["error"]}),
    }


def _publish_as_child(producer: Any, name: str, writing: int) -> None:
    confirmed, error = 0, ""
    try:
        with gevent.Timeout(8):
            for _ in range(20):
                producer.publish("x", routing_key=name, timeout=5)
                confirmed += 1
    except BaseException as exc:
        error = type(exc).__name__
    finally:
        os.write(writing, (json.dumps({"confirmed": confirmed, "error": error}) + "\n").encode())
        os._exit(0)


@case(
    "who releases and acquires again overtakes those who wait", lambda found: not found["overtakes"]
)
def overtaking(client: Any, urls: Urls) -> dict[str, Any]:
    """700 greenlets wait for the one connection of a pool; its holder releases and acquires."""
    pool = client.Connection("memory://").Pool(limit=1)
    held = pool.acquire()
    served: list[int] = []

    def wait(number: int) -> None:
        taken = pool.acquire(block=True)
        served.append(number)
        taken.release()

    waiting = [gevent.spawn(wait, number) for number in range(700)]
    gevent.sleep(0.1)
    overtakes = 0
    for _ in range(1000):
        held.release()
        held = pool.acquire(block=True)
        if served:
            break
        overtakes += 1
        gevent.sleep(0)
    held.release()
    gevent.joinall(waiting, timeout=20)
    return {"waiting": 700, "overtakes": overtakes}


@case(
    "callbacks run inside the waits of others until the stack ends",
    lambda found: found["deepest"] == 1,
)
def nested_callbacks(client: Any, urls: Urls) -> dict[str, Any]:
    """2,000 messages, and a callback that asks the broker something."""
    depth = deepest = handled = 0
    ended = ""
    connection = client.Connection(urls.amqp)
    channel = connection.channel()
    queue = _new_queue(client, channel)
    producer = client.Producer(connection.channel())
    for _ in range(2000):
        producer.publish("x", routing_key=queue.name)

    def handle(body: Any, message: Any) -> None:
        nonlocal depth, deepest, handled
        depth += 1
        deepest = max(deepest, depth)
        try:
            queue.queue_declare(passive=True)
            handled += 1
        finally:
            depth -= 1

    try:
        client.Consumer(channel, [queue], callbacks=[handle], no_ack=True).consume()
        while handled < 2000:
            connection.drain_events(timeout=30)
    except Exception as exc:
        ended = type(exc).__name__
    with suppress(Exception), suppress(gevent.Timeout), gevent.Timeout(5):
        connection.close()
    return {"messages": 2000, "handled": handled, "deepest": deepest, "ended": ended}


@case("connect() tries twice behind its caller's back", lambda found: found["attempts"] == 1)
def connects_twice(client: Any, urls: Urls) -> dict[str, Any]:
    """Connect to a port that hangs up at once, and count the calls."""
    peer = _peer(lambda client: None)
    try:
        with suppress(Exception), gevent.Timeout(10):
            client.Connection(f"amqp://127.0.0.1:{peer.port}//").connect()
        return {"attempts": peer.accepted}
    finally:
        peer.stop()


@case("an untrusted peer's word of 2 GiB is taken for memory", lambda found: found["mib"] < 10)
def announced_length(client: Any, urls: Urls) -> dict[str, Any]:
    """A broker announces a frame of 2 GiB during the login, and sends one byte of it."""

    def serve(sock: socket.socket) -> None:
        sock.recv(8)
        sock.sendall(b"\x01\0\0\x7f\xff\xff\xf0x")
        gevent.sleep(0.5)

    peer = _peer(serve)
    tracemalloc.start()
    raised = ""
    try:
        with gevent.Timeout(10):
            client.Connection(f"amqp://127.0.0.1:{peer.port}//", connect_timeout=2).connect()
    except BaseException as exc:
        raised = type(exc).__name__
    finally:
        peer.stop()
    return {"mib": round(tracemalloc.get_traced_memory()[1] / 2**20), "raised": raised}


@case("a password stands in the repr of a pool group", lambda found: not found["shown"])
def password_in_repr(client: Any, urls: Urls) -> dict[str, Any]:
    """Show the pools of a connection with a password."""
    pools = sys.modules[f"{client.__name__}.pools"]
    connection = client.Connection(f"amqp://user:{SECRET}@localhost//")
    _ = pools.connections[connection]
    shown = [
        what
        for what, value in (
            ("pools.connections", pools.connections),
            ("pool", pools.connections[connection]),
            ("connection", connection),
        )
        if SECRET in repr(value)
    ]
    return {"shown": shown}


@case("rediss:// tells its password to whoever answers", lambda found: not found["told"])
def unverified_rediss(client: Any, urls: Urls) -> dict[str, Any]:
    """A server with a certificate that nobody has signed answers for a ``rediss://`` address."""
    heard: list[bytes] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTS / "server.pem", CERTS / "server.key")

    def serve(sock: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(sock, server_side=True) as sealed:
            while data := sealed.recv(4096):
                heard.append(data)
                sealed.sendall(b"+OK\r\n")

    peer = _peer(serve)
    raised = ""
    try:
        with gevent.Timeout(5):
            url = f"rediss://:{SECRET}@127.0.0.1:{peer.port}/0"
            client.Connection(url, connect_timeout=2).default_channel.queue_declare("q")
    except BaseException as exc:
        raised = type(exc).__name__
    finally:
        peer.stop()
    return {"told": SECRET.encode() in b"".join(heard), "raised": raised}


@case(
    "what a killed consumer held is lost, or stuck for an hour",
    lambda found: found["lost"] == found["stuck"] == 0,
)
def killed_consumers(client: Any, urls: Urls) -> dict[str, Any]:
    """Consumers on Redis that are killed (-9) again and again; what do those after them get?"""
    name, count = f"sin-{uuid4().hex}", 300
    options = {"global_keyprefix": f"{name}."}
    if client.__name__ == "greenconn":
        options["lease"] = 1.0  # type: ignore[assignment]  # else 30 s
    with client.Connection(urls.redis, transport_options=options) as connection:
        connection.SimpleQueue(name).close()
        producer = connection.Producer()
        for number in range(count):
            producer.publish(str(number), routing_key=name)
    with TemporaryDirectory() as directory:
        log = os.open(Path(directory) / "handled", os.O_CREAT | os.O_APPEND | os.O_RDWR)
        for seconds in (0.3, 0.25, 0.35, 0.3, 0.4):
            child = _consume_as_child(client, urls, options, name, log, forever=True)
            gevent.sleep(seconds)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        # The last one may take its time.
        child = _consume_as_child(client, urls, options, name, log, forever=False)
        os.waitpid(child, 0)
        handled = set((Path(directory) / "handled").read_text().split())
        os.close(log)
    stuck = _held(urls, f"{name}.unacked")
    return {
        "messages": count,
        "handled": len(handled),
        "stuck": stuck,
        "lost": count - len(handled) - stuck,
    }


def _consume_as_child(
    client: Any, urls: Urls, options: dict[str, Any], name: str, log: int, *, forever: bool
) -> int:
    child = os.fork()
    if child:
        return child
    try:
        gevent.reinit()
        with client.Connection(urls.redis, transport_options=options) as connection:

            def handle(body: Any, message: Any) -> None:
                gevent.sleep(0.002)
                os.write(log, f"{body}\n".encode())
                message.ack()

            with client.Consumer(
                connection.channel(), [client.Queue(name)], callbacks=[handle], prefetch_count=20
            ):
                silence = 0
                while forever or silence < 3:
                    try:
                        connection.drain_events(timeout=1)
                        silence = 0
                    except OSError as exc:
                        if exc.errno not in (None, errno.EAGAIN):
                            raise
                        silence += 1
    finally:
        os._exit(0)


def _held(urls: Urls, key: str) -> int:
    import redis  # of the process of a case only

    with redis.Redis.from_url(urls.redis) as server:
        return int(server.hlen(key))


def measure(name: str, client_name: str, urls: Urls) -> dict[str, Any]:
    """Run one case in this process."""
    import importlib

    for module in ("", ".pools"):
        importlib.import_module(client_name + module)
    logging.disable(logging.CRITICAL)
    return CASES[name].measure(sys.modules[client_name], urls)
