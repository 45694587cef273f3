"""Peers that are no broker, or a bad one: one clear error in time, and nothing left behind."""

from __future__ import annotations

import logging
import os
import random
import resource
import traceback
from collections.abc import Callable, Iterator
from struct import pack, unpack
from time import monotonic
from typing import Any

import gevent
import pytest
from amqp import spec
from amqp.sasl import PLAIN
from gevent import socket
from gevent.event import Event
from gevent.monkey import get_original

from greenconn.exceptions import (
    AccessRefused,
    AMQPError,
    ConnectionBlocked,
    ConnectionError,
    ConnectionForced,
    FrameError,
    NotAllowed,
    PublishNacked,
    PublishTimeout,
    RecoverableConnectionError,
    UnexpectedFrame,
)
from greenconn.green.deadline import Deadline
from greenconn.transport.amqp.link import AmqpLink
from tests.brokers.ports import free_ports
from tests.fix_amqp import (
    AmqpPeer,
    AmqpPeers,
    BrokerEnd,
    Links,
    Method,
    content,
    drain,
    method_frame,
)
from tests.fix_interrupts import interruptions
from tests.fix_peer import PeerFactory
from tests.fix_wires import until
from tests.integration.test_amqp_opening import with_login

pytestmark = pytest.mark.full

native_sleep = get_original("time", "sleep")

WAIT = 20.0
#: The flags of a ``basic.nack`` that puts one delivery back.
REQUEUE = 2
SECRET = "secret-word"
#: Seconds for connecting, where the end of them is waited for.
SHORT = 0.3

Handler = Callable[[socket.socket], object]


START = method_frame(0, spec.Connection.Start, "ooFSS", 0, 9, {}, "PLAIN", "en_US")


def error_text(exc: BaseException) -> str:
    """All that a program would print of an error and of those behind it."""
    parts = ["".join(traceback.format_exception(exc))]
    each: BaseException | None = exc
    while each is not None:
        parts.append(f"{each} {each!r} {each.args!r} {vars(each)!r}")
        each = each.__cause__ or each.__context__
    return " ".join(parts)


@pytest.fixture
def refused(
    peer: PeerFactory, caplog: pytest.LogCaptureFixture
) -> Iterator[Callable[..., BaseException]]:
    """Connects to a server with this handler; returns the error.  No secret may get out."""
    caplog.set_level(logging.DEBUG)

    def connect(handler: Handler, timeout: float = WAIT) -> BaseException:
        server = peer(handler)
        links = Links(f"amqp://user:{SECRET}@{server.host}:{server.port}/")
        began = monotonic()
        with pytest.raises((OSError, AMQPError)) as caught:
            links(connect_timeout=timeout)
        assert monotonic() - began < 10 * timeout
        error: BaseException = caught.value
        assert f"{server.host}:{server.port}" in str(error)
        assert SECRET not in error_text(error)
        return error

    yield connect
    assert SECRET not in caplog.text


def hold(client: socket.socket) -> None:
    """Read and say nothing, until the other side hangs up."""
    while client.recv(4096):
        pass


def says(data: bytes) -> Handler:
    """A server that says this, whatever it is told."""

    def serve(client: socket.socket) -> None:
        client.recv(8)
        client.sendall(data)
        hold(client)

    return serve


# What is no broker.


def test_nothing_listens(amqp_links: Links) -> None:
    port = free_ports(1)[0]
    with pytest.raises(ConnectionRefusedError, match=f"127.0.0.1:{port}") as caught:
        amqp_links(f"amqp://user:{SECRET}@127.0.0.1:{port}/")
    assert SECRET not in error_text(caught.value)


def test_a_name_that_nobody_knows(amqp_links: Links) -> None:
    with pytest.raises(socket.gaierror, match=r"nobody\.invalid") as caught:
        amqp_links(f"amqp://user:{SECRET}@nobody.invalid/")
    assert SECRET not in error_text(caught.value)


def test_silence(refused: Callable[..., BaseException]) -> None:
    error = refused(hold, SHORT)
    assert isinstance(error, TimeoutError)
    assert "no reply within 0.3 s (the AMQP handshake)" in str(error)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "amqps"),
        (b"AMQP\x00\x01\x00\x00", "AMQP 1.0.0"),
        (b"220 mail.example.org ESMTP\r\n", "does not speak AMQP"),
        (b"-ERR unknown command 'AMQP'\r\n", "does not speak AMQP"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "does not speak AMQP"),
        (b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x0aX", "0xCE"),
        (b"\x01\x00\x00\x80\x00\x00\x00 and nothing behind it", "2147483648 bytes announced"),
        (method_frame(1, spec.Basic.Deliver), "no reply"),
        (content(1, b"body"), "type 2 on channel 1"),
        (method_frame(0, spec.Queue.DeclareOk, "sll", "q", 0, 0), "50,11 during the handshake"),
        (method_frame(0, (99, 99)), "99,99 during the handshake"),
        (method_frame(0, spec.Connection.Start), "cannot be read"),
        (method_frame(0, spec.Connection.Start, "ooF", 0, 9, {}), "cannot be read"),
        (method_frame(0, spec.Connection.Tune, "BlB", 0, 0, 0), "10,30 during the handshake"),
        (START + method_frame(0, spec.Connection.Tune, "B", 1), "cannot be read"),
        (START + method_frame(0, spec.Connection.Tune, "BlB", 0, 100, 0), "frames of 100 bytes"),
        (START + START, "10,10 during the handshake"),
        (START * 1000, "during the handshake"),
        (method_frame(0, spec.Connection.Start, "ooFSS", 0, 9, {}, "GSSAPI", "en"), "mechanism"),
        (method_frame(0, spec.Connection.Close, "B", 1), "cannot be read"),
    ],
)
def test_what_no_broker_says(refused: Callable[..., BaseException], data: bytes, text: str) -> None:
    error = refused(says(data), SHORT if text == "no reply" else WAIT)
    assert text in str(error)


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes(refused: Callable[..., BaseException], seed: int) -> None:
    data = random.Random(seed).randbytes(10_000)
    assert isinstance(refused(says(data)), FrameError | UnexpectedFrame)


def test_a_byte_at_a_time_has_one_deadline_for_all(refused: Callable[..., BaseException]) -> None:
    start = method_frame(0, spec.Connection.Start, "ooFSS", 0, 9, {}, "PLAIN" * 100, "en_US")

    def trickle(client: socket.socket) -> None:
        for byte in start * 100:
            client.sendall(bytes((byte,)))
            gevent.sleep(0.02)

    assert isinstance(refused(trickle, SHORT), TimeoutError)


def test_an_endless_handshake_has_one_deadline_too(refused: Callable[..., BaseException]) -> None:
    secure = method_frame(0, spec.Connection.Secure, "S", "again")

    def repeat(client: socket.socket) -> None:
        client.sendall(START)
        while True:
            client.sendall(secure)
            gevent.sleep(0.001)

    assert isinstance(refused(repeat, SHORT), TimeoutError)


def test_a_flood_amid_the_handshake_ends_it(refused: Callable[..., BaseException]) -> None:
    secure = method_frame(0, spec.Connection.Secure, "S", "again")
    assert "more than 64 methods during the handshake" in str(refused(says(START + secure * 1000)))


def test_a_frame_of_two_gibibytes_takes_no_memory(refused: Callable[..., BaseException]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind in (1, 2, 3, 8):
        error = refused(says(pack(">BHI", kind, 0, 2 << 30) + bytes(1000)))
        assert "2147483648 bytes announced" in str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


STEPS: list[Method | None] = [
    None,
    spec.Connection.StartOk,
    spec.Connection.TuneOk,
    spec.Connection.Open,
]


@pytest.mark.parametrize("how", ["end", "reset", "silence", "garbage", "close"])
@pytest.mark.parametrize("step", STEPS)
def test_the_connection_ends_at_each_step_of_the_handshake(
    refused: Callable[..., BaseException], step: Method | None, how: str
) -> None:
    def serve(client: socket.socket) -> None:
        end = BrokerEnd(client, (2047, 131072, 0))
        if step is None:
            client.recv(8)
        else:
            end.ignored = {step, spec.Connection.Open}
            serving = gevent.spawn(serve_quietly, end)
            end.expect(step)
            serving.kill()
        if how == "reset":
            BrokerEnd(client, (0, 0, 0)).reset_on_close()
        elif how == "silence":
            hold(client)
        elif how == "garbage":
            client.sendall(b"\xff" * 100)
            hold(client)
        elif how == "close":
            # With the end of the stream right behind it.
            end.method(0, spec.Connection.Close, "BsBB", 320, "not today", 0, 0)

    error = refused(serve, SHORT if how == "silence" else WAIT)
    if how == "close":
        assert isinstance(error, ConnectionForced)
        assert "not today" in str(error)
        assert error.reply_code == 320
    elif how == "silence":
        assert isinstance(error, TimeoutError)
    elif how == "garbage":
        assert isinstance(error, FrameError)
    else:
        assert isinstance(error, ConnectionResetError)
    assert "the AMQP handshake" in str(error)


def serve_quietly(end: BrokerEnd) -> None:
    try:
        end.serve()
    except OSError:
        pass


def test_each_switch_of_connecting_may_be_the_last(amqp_peer: AmqpPeer) -> None:
    links = Links(amqp_peer.url)

    def connect() -> None:
        links().close()

    for run in interruptions(connect, delays=(0, 1)):
        assert run.was_interrupted or run.raised is None
        assert not [link for link in links.links if link.is_open]
    until(lambda: not amqp_peer.peer.sockets)


# What a broker refuses.


def test_a_wrong_password(
    amqp_links: Links, amqp_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(AccessRefused, match="check user, password and permissions") as caught:
        amqp_links(with_login(amqp_url, f"guest:{SECRET}"))
    assert caught.value.reply_code == 403
    assert SECRET not in error_text(caught.value) + caplog.text
    assert "guest:**@" in str(caught.value)


def test_an_absent_virtual_host(amqp_links: Links, amqp_url: str) -> None:
    url = amqp_url.rpartition("/")[0] + "/nowhere"
    with pytest.raises(NotAllowed, match="nowhere") as caught:
        amqp_links(url)
    assert caught.value.reply_code == 530


def test_nothing_that_shows_a_link_shows_its_password(
    amqp_peer: AmqpPeer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    links = Links(amqp_peer.url)
    link = links()
    channel = link.channel()
    texts = [repr(link), str(link), repr(channel), repr(link.stream), link.where]
    amqp_peer.peer.drop()
    until(lambda: link.lost)
    assert link.lost is not None
    texts += [repr(link), error_text(link.lost)]
    with pytest.raises(RecoverableConnectionError) as caught:
        channel.queue_declare("q")
    assert SECRET not in " ".join(texts) + error_text(caught.value) + caplog.text
    links.close()


# A broker that does not keep to the protocol.


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (method_frame(1, spec.Queue.DeclareOk, "sll", "q", 0, 0), "50,11 on channel 1"),
        (method_frame(0, spec.Connection.Tune, "BlB", 0, 0, 0), "10,30 on channel 0"),
        (content(1, b"body"), "type 2 on channel 1"),
        (b"\xff" * 8, "unknown type 255"),
        (method_frame(1, spec.Channel.Close, "B", 1), "cannot be read"),
        (method_frame(0, spec.Connection.Blocked), "cannot be read"),
        (pack(">BHI", 3, 1, 2 << 30) + b"x", "announced"),
    ],
)
def test_what_no_broker_says_later_ends_the_link_for_all(
    link: AmqpLink, end: BrokerEnd, data: bytes, text: str
) -> None:
    first, second = link.channel(), link.channel()
    waiting: list[Any] = [
        gevent.spawn(second.queue_declare, "q"),
        gevent.spawn(second.basic_publish_confirm, second.prepare_message("x"), "", "q"),
        gevent.spawn(link.drain, Deadline(WAIT)),
    ]
    told_lost: list[BaseException] = []
    link.on_lost = told_lost.append
    gevent.sleep(0.01)
    end.send(data)
    for each in waiting:
        with pytest.raises(ConnectionError, match=text):
            each.get(timeout=WAIT)
    with pytest.raises(RecoverableConnectionError):
        first.queue_declare("q")
    until(lambda: told_lost)
    assert len(told_lost) == 1
    assert told_lost[0] is link.lost


def test_what_concerns_nobody_is_passed_over(link: AmqpLink, end: BrokerEnd) -> None:
    channel = link.channel()
    end.method(77, spec.Queue.DeclareOk, "sll", "q", 0, 0)
    end.deliver(1, "nobody", 1)
    end.deliver(77, "nobody", 1)
    end.method(1, spec.Basic.Ack, "Lb", 12, False)
    end.method(0, spec.Connection.Unblocked)
    asking = gevent.spawn(channel.queue_declare, "q")
    end.expect(spec.Queue.Declare)
    end.method(1, spec.Queue.DeclareOk, "sll", "q", 3, 4)
    assert tuple(asking.get(timeout=WAIT)) == ("q", 3, 4)


def test_a_broker_that_closes_the_connection_says_why_to_everybody(
    link: AmqpLink, end: BrokerEnd
) -> None:
    channels = [link.channel() for _ in range(3)]
    waiting: list[Any] = [gevent.spawn(channel.queue_declare, "q") for channel in channels]
    draining = gevent.spawn(link.drain, Deadline(WAIT))
    gevent.sleep(0.01)
    end.method(0, spec.Connection.Close, "BsBB", 320, "maintenance", 0, 0)
    end.expect(spec.Connection.CloseOk)
    for each in [*waiting, draining]:
        with pytest.raises(ConnectionForced, match="maintenance"):
            each.get(timeout=WAIT)


@pytest.mark.parametrize("how", ["end", "reset", "reader"])
def test_everybody_learns_once_of_a_lost_connection(
    amqp_peer: AmqpPeer, link: AmqpLink, end: BrokerEnd, how: str
) -> None:
    end.ignored = {spec.Channel.Open}
    opening = gevent.spawn(link.channel)
    end.expect(spec.Channel.Open)
    end.ignored = set()
    channel, closing = link.channel(), link.channel()
    end.ignored = {spec.Channel.Close}
    calls: list[Any] = [
        gevent.spawn(channel.basic_publish_confirm, channel.prepare_message("x"), "", "q"),
        gevent.spawn(channel.queue_declare, "q"),
        gevent.spawn(channel.basic_get, "q"),
        gevent.spawn(channel.basic_consume, "q", callback=print),
        *(gevent.spawn(link.drain, Deadline(WAIT)) for _ in range(3)),
    ]
    close = gevent.spawn(closing.close)
    gevent.sleep(0.01)
    if how == "reader":
        assert link.stream is not None
        link.stream._reader.kill()
    else:
        if how == "reset":
            end.reset_on_close()
        amqp_peer.peer.drop()
    for each in [opening, *calls]:
        with pytest.raises(RecoverableConnectionError, match="lost"):
            each.get(timeout=WAIT)
    close.get(timeout=WAIT)  # it is closed, which was the wish
    assert not link.is_open
    assert not channel.is_open
    channel.basic_ack(1)  # of a delivery of that life: the broker delivers it again
    link.close()
    channel.close()


def test_close_does_not_wait_long_for_a_broker_that_is_silent(
    link: AmqpLink, end: BrokerEnd, caplog: pytest.LogCaptureFixture
) -> None:
    end.ignored = {spec.Connection.Close}
    channel = link.channel()
    waiting = gevent.spawn(channel.queue_declare, "q")
    gevent.sleep(0)
    began = monotonic()
    link.close()
    assert monotonic() - began < WAIT
    with pytest.raises(RecoverableConnectionError, match="closed"):
        waiting.get(timeout=WAIT)
    assert caplog.text.count("did not confirm within 2 s") == 1
    assert "without confirms just before may be lost" in caplog.text


def test_both_sides_close_at_once(link: AmqpLink, end: BrokerEnd) -> None:
    end.ignored = {spec.Connection.Close}
    lost: list[BaseException] = []
    link.on_lost = lost.append
    closing = gevent.spawn(link.close)
    end.expect(spec.Connection.Close)
    end.method(0, spec.Connection.Close, "BsBB", 320, "me too", 0, 0)
    closing.get(timeout=WAIT)
    assert not lost


# Channels, message by message.


def test_a_channel_number_is_used_again_only_after_close_ok(link: AmqpLink, end: BrokerEnd) -> None:
    first = link.channel()
    end.ignored = {spec.Channel.Close}
    closing = gevent.spawn(first.close)
    end.expect(spec.Channel.Close)
    assert link.channel().channel_id == 2
    end.method(1, spec.Channel.CloseOk)
    closing.get(timeout=WAIT)
    assert link.channel().channel_id == 1


def test_a_killed_close_keeps_its_number_until_close_ok(link: AmqpLink, end: BrokerEnd) -> None:
    first = link.channel()
    end.ignored = {spec.Channel.Close}
    closing = gevent.spawn(first.close)
    end.expect(spec.Channel.Close)
    closing.kill()
    first.close()
    assert link.channel().channel_id == 2
    end.method(1, spec.Channel.CloseOk)
    until(lambda: 1 not in link.channels)
    assert link.channel().channel_id == 1


def test_channel_closes_that_cross(link: AmqpLink, end: BrokerEnd) -> None:
    channel = link.channel()
    end.ignored = {spec.Channel.Close}
    closing = gevent.spawn(channel.close)
    end.expect(spec.Channel.Close)
    end.method(1, spec.Channel.Close, "BsBB", 404, "too late", 50, 10)
    end.expect(spec.Channel.CloseOk)
    assert link.channel().channel_id == 2
    end.method(1, spec.Channel.CloseOk)
    closing.get(timeout=WAIT)
    assert link.channel().channel_id == 1


def test_a_channel_that_opens_after_its_caller_was_killed_is_closed(
    link: AmqpLink, end: BrokerEnd
) -> None:
    end.ignored = {spec.Channel.Open}
    opening = gevent.spawn(link.channel)
    end.expect(spec.Channel.Open)
    opening.kill()
    end.method(1, spec.Channel.OpenOk, "S", "")
    assert end.expect(spec.Channel.Close)[0] == 1
    until(lambda: 1 not in link.channels)


def test_a_queue_that_the_broker_named_after_its_caller_was_killed_is_deleted(
    link: AmqpLink, end: BrokerEnd
) -> None:
    channel = link.channel()
    for name in ("", "mine"):
        declaring = gevent.spawn(channel.queue_declare, name, exclusive=True)
        end.expect(spec.Queue.Declare)
        declaring.kill()
        end.method(1, spec.Queue.DeclareOk, "sll", name or "amq.gen-1", 0, 0)
    _, _, arguments, _ = end.expect(spec.Queue.Delete)
    assert b"amq.gen-1" in arguments
    end.method(1, spec.Queue.DeleteOk, "l", 0)
    asking = gevent.spawn(channel.queue_purge, "q")
    end.expect(spec.Queue.Purge)  # and no other delete
    end.method(1, spec.Queue.PurgeOk, "l", 5)
    assert asking.get(timeout=WAIT) == 5


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_message_that_comes_for_a_killed_get_goes_back(
    link: AmqpLink, end: BrokerEnd, when: str
) -> None:
    channel = link.channel()
    getting = gevent.spawn(channel.basic_get, "q")
    end.expect(spec.Basic.Get)
    reply = method_frame(1, spec.Basic.GetOk, "Lbssl", 7, False, "", "q", 0) + content(1, b"x")
    if when == "before":
        getting.kill()
        end.send(reply)
    else:
        # The reply is read in the turn in which the caller is killed.
        end.send(reply)
        assert link.stream is not None
        receives = link.stream.receives
        loop = gevent.get_hub().loop

        def kill() -> None:
            assert link.stream is not None
            if link.stream.receives > receives:
                getting.throw(gevent.GreenletExit)
            else:
                loop.run_callback(kill)

        loop.run_callback(kill)
        getting.join(WAIT)
    got = end.expect(spec.Basic.Nack)
    assert got[2] == pack(">QB", 7, REQUEUE)
    assert not channel.acks.ledger.outstanding


def test_a_delivery_for_an_unknown_tag_goes_back_and_is_covered_by_no_ack(
    link: AmqpLink, end: BrokerEnd
) -> None:
    channel = link.channel()
    got: list[Any] = []
    end.confirm_consumers()
    assert channel.basic_consume("q", "tag", callback=got.append) == "tag"
    end.deliver(1, "nobody", 1)
    end.deliver(1, "tag", 2)
    end.deliver(1, "nobody", 3)
    end.deliver(1, "tag", 4)
    drain(link, lambda: len(got) == 2)
    for message in got:
        message.ack()
    channel.acks.flush()
    answers: dict[int, Method] = {}
    while len(answers) < 4:
        with gevent.Timeout(WAIT):
            _, method, payload, *_ = end.got.get()
        if method in (spec.Basic.Ack, spec.Basic.Nack):
            tag, flags = unpack(">QB", payload)
            # One for several must come after those below it that are not meant.
            covered = range(1, tag + 1) if flags & 1 else [tag]
            for each in covered:
                answers.setdefault(each, method)
    assert [answers[tag] for tag in (1, 2, 3, 4)] == [
        spec.Basic.Nack,
        spec.Basic.Ack,
        spec.Basic.Nack,
        spec.Basic.Ack,
    ]
    assert not channel.acks.ledger.outstanding


def test_after_its_end_a_callback_gets_nothing_more(link: AmqpLink, end: BrokerEnd) -> None:
    channel = link.channel()
    got: list[int] = []

    def handle(message: Any) -> None:
        got.append(message.delivery_tag)
        channel.basic_cancel("tag")

    end.confirm_consumers()
    assert channel.basic_consume("q", "tag", callback=handle) == "tag"
    for tag in (1, 2, 3):
        end.deliver(1, "tag", tag)
    draining = gevent.spawn(link.drain, Deadline(WAIT))
    end.expect(spec.Basic.Cancel)
    end.method(1, spec.Basic.CancelOk, "s", "tag")
    draining.get(timeout=WAIT)
    assert end.expect(spec.Basic.Nack)[2][:8] in (pack(">Q", 2), pack(">Q", 3))
    assert got == [1]
    assert not len(link.events)


def test_deliveries_before_consume_ok_are_not_lost(link: AmqpLink, end: BrokerEnd) -> None:
    channel = link.channel()
    bodies: list[bytes] = []
    consuming = gevent.spawn(
        channel.basic_consume, "q", "tag", callback=lambda each: bodies.append(each.body)
    )
    end.expect(spec.Basic.Consume)
    end.deliver(1, "tag", 1, b"early")
    end.method(1, spec.Basic.ConsumeOk, "s", "tag")
    end.deliver(1, "tag", 2, b"late")
    assert consuming.get(timeout=WAIT) == "tag"
    drain(link, lambda: len(bodies) == 2)
    assert bodies == [b"early", b"late"]


def test_deliveries_to_a_killed_consumer_go_back_and_it_is_cancelled(
    link: AmqpLink, end: BrokerEnd
) -> None:
    channel = link.channel()
    consuming = gevent.spawn(channel.basic_consume, "q", "tag", callback=print)
    end.expect(spec.Basic.Consume)
    end.deliver(1, "tag", 1)
    until(lambda: link.events)
    consuming.kill()
    end.deliver(1, "tag", 2)
    assert end.expect(spec.Basic.Nack)[2] == pack(">QB", 2, REQUEUE)
    end.method(1, spec.Basic.ConsumeOk, "s", "tag")
    end.expect(spec.Basic.Cancel)
    end.deliver(1, "tag", 3)
    assert end.expect(spec.Basic.Nack)[2] == pack(">QB", 3, REQUEUE)
    end.method(1, spec.Basic.CancelOk, "s", "tag")
    until(lambda: not channel.consumers.by_tag)
    # The one that came before the kill waits among the events; who drains gives it back.
    link.drain(Deadline(WAIT))
    assert end.expect(spec.Basic.Nack)[2] == pack(">QB", 1, REQUEUE)
    assert not channel.acks.ledger.outstanding


def test_a_timeout_of_the_user_amid_a_frame_loses_no_byte(link: AmqpLink, end: BrokerEnd) -> None:
    channel, stream = link.channel(), link.stream
    assert stream is not None
    got: list[Any] = []
    end.confirm_consumers()
    assert channel.basic_consume("q", "tag", callback=got.append) == "tag"
    data = method_frame(1, spec.Basic.Deliver, "sLbss", "tag", 1, False, "", "q")
    data += content(1, b"whole")
    for start in range(0, len(data), 5):
        received = stream.received_at
        end.send(data[start : start + 5])
        until(lambda received=received: stream.received_at > received)  # type: ignore[misc]
        with gevent.Timeout(0.001, False):  # type: ignore[arg-type]  # gevent takes it
            while not got:
                link.drain(Deadline())
    drain(link, lambda: got)
    assert [each.body for each in got] == [b"whole"]
    assert link.is_open


def test_a_get_and_deliveries_of_one_chunk_are_acked_exactly(
    link: AmqpLink, end: BrokerEnd
) -> None:
    """The got message has the lower tag; no merged ack of the others may cover it."""
    channel = link.channel()
    end.confirm_consumers()
    channel.basic_consume("q", "tag", callback=lambda each: channel.basic_ack(each.delivery_tag))
    getting = gevent.spawn(channel.basic_get, "q")
    end.expect(spec.Basic.Get)
    reply = method_frame(1, spec.Basic.GetOk, "Lbssl", 1, False, "", "q", 0) + content(1, b"got")
    others = b"".join(
        method_frame(1, spec.Basic.Deliver, "sLbss", "tag", tag, False, "", "q") + content(1, b"x")
        for tag in (2, 3)
    )
    end.send(reply + others)
    until(lambda: len(link.events) == 2 or getting.ready())
    drain(link, lambda: not len(link.events))
    tags = [end.expect(spec.Basic.Ack)[2] for _ in range(2)]
    assert tags == [pack(">QB", 2, False), pack(">QB", 3, False)]
    assert getting.get(timeout=WAIT).body == b"got"
    channel.basic_ack(1)
    assert end.expect(spec.Basic.Ack)[2] == pack(">QB", 1, False)


def test_the_broker_is_asked_once_to_cancel(link: AmqpLink, end: BrokerEnd) -> None:
    channel = link.channel()
    end.confirm_consumers()
    assert channel.basic_consume("q", "tag") == "tag"
    cancelling = [gevent.spawn(channel.basic_cancel, "tag") for _ in range(2)]
    end.expect(spec.Basic.Cancel)
    channel.basic_cancel("tag", nowait=True)
    asking = gevent.spawn(channel.queue_purge, "q")
    assert end.got.get(timeout=WAIT)[1] == spec.Queue.Purge
    assert not any(each.ready() for each in cancelling)
    end.method(1, spec.Basic.CancelOk, "s", "tag")
    end.method(1, spec.Queue.PurgeOk, "l", 0)
    asking.get(timeout=WAIT)
    for each in cancelling:
        each.get(timeout=WAIT)


def test_a_reply_that_never_comes_has_its_deadline(amqp_peer: AmqpPeer) -> None:
    links = Links(amqp_peer.url)
    link = links()
    channel = link.channel()
    usual = link.options
    link.options = usual.replace(reply_timeout=0.1, confirm_timeout=0.1)
    with pytest.raises(TimeoutError, match=r"did not reply within 0\.1 s"):
        channel.queue_declare("late")
    with pytest.raises(TimeoutError, match="may have the message"):
        channel.basic_publish_confirm(channel.prepare_message("x"), "", "q")
    # Its reply is not taken for that of the next, which has all the time that it needs.
    link.options = usual
    asking = gevent.spawn(channel.queue_declare, "next")
    end = amqp_peer.end
    end.expect(spec.Basic.Publish)
    end.expect(spec.Queue.Declare)
    for name in ("late", "next"):
        end.method(1, spec.Queue.DeclareOk, "sll", name, 0, 0)
    assert asking.get(timeout=WAIT).queue == "next"
    links.close()


@pytest.mark.parametrize("late", [spec.Basic.Ack, spec.Basic.Nack], ids=["ack", "nack"])
@pytest.mark.parametrize("multiple", [False, True], ids=["single", "multiple"])
def test_a_late_confirm_is_not_taken_for_that_of_the_next(
    amqp_peer: AmqpPeer, late: tuple[int, int], multiple: bool
) -> None:
    links = Links(amqp_peer.url)
    channel = links().channel()
    for _ in range(2):
        with pytest.raises(PublishTimeout):
            channel.basic_publish_confirm(
                channel.prepare_message("x"), "", "q", confirm_timeout=0.05
            )
    waiting = [
        gevent.spawn(channel.basic_publish_confirm, channel.prepare_message("x"), "", "q")
        for _ in range(2)
    ]
    end = amqp_peer.end
    for _ in range(4):
        end.expect(spec.Basic.Publish)
    end.method(1, late, "Lb", 2, multiple)
    asking = gevent.spawn(channel.queue_declare, "q")
    end.expect(spec.Queue.Declare)
    end.method(1, spec.Queue.DeclareOk, "sll", "q", 0, 0)
    asking.get(timeout=WAIT)
    assert not any(each.ready() for each in waiting)
    end.method(1, spec.Basic.Ack, "Lb", 4, False)
    waiting[1].get(timeout=WAIT)
    assert not waiting[0].ready()
    end.method(1, spec.Basic.Nack, "Lb", 4, True)
    with pytest.raises(PublishNacked):
        waiting[0].get(timeout=WAIT)
    links.close()


def test_a_peer_that_reads_nothing_blocks_publishers_with_bounded_memory(
    amqp_peer: AmqpPeer,
) -> None:
    links = Links(amqp_peer.url)
    link = links(blocked_timeout=0.2)
    channel = link.channel()
    amqp_peer.end.is_reading.clear()
    message = channel.prepare_message(os.urandom(50_000))
    with pytest.raises(TimeoutError, match="does not read"):
        for _ in range(1000):
            channel.basic_publish(message, "", "q")
    assert link.writer.pending < 2 << 20
    assert link.is_open
    amqp_peer.end.is_reading.set()
    until(lambda: not link.writer.pending)
    links.close()


def test_the_time_for_the_confirm_covers_the_wait_while_blocked(amqp_peer: AmqpPeer) -> None:
    links = Links(amqp_peer.url)
    link = links(blocked_timeout=600.0, confirm_timeout=600.0)
    channel = link.channel()
    amqp_peer.end.method(0, spec.Connection.Blocked, "s", "low on memory")
    until(lambda: link.flow_control.blocked)
    message = channel.prepare_message(b"body")
    with gevent.Timeout(WAIT), pytest.raises(ConnectionBlocked, match=r"waited 0\.1 s"):
        channel.basic_publish_confirm(message, "", "q", timeout=500.0, confirm_timeout=0.1)
    links.close()


def test_a_peer_that_reads_nothing_has_its_write_timeout(amqp_peer: AmqpPeer) -> None:
    links = Links(amqp_peer.url)
    link = links(blocked_timeout=None, write_timeout=0.1)
    channel = link.channel()
    amqp_peer.end.is_reading.clear()
    message = channel.prepare_message(bytes(100_000))
    with pytest.raises(TimeoutError, match=r"does not read; waited 0\.1 s"):
        for _ in range(1000):
            channel.basic_publish(message, "", "q")
    amqp_peer.end.is_reading.set()
    links.close()


def test_hooks_and_a_login_of_the_programs_own(amqp_peer: AmqpPeer) -> None:
    links = Links(amqp_peer.url)
    calls: list[Any] = []
    link = links(
        authentication=PLAIN("somebody", "else"),
        on_open=lambda opened: calls.append((opened, opened.connected)),
        on_tune_ok=lambda: calls.append("tuned"),
    )
    assert calls == ["tuned", (link, True)]
    assert b"\0somebody\0else" in amqp_peer.end.expect(spec.Connection.StartOk)[2]
    links.close()

    def fail(opened: AmqpLink) -> None:
        raise LookupError("not this one")

    with pytest.raises(LookupError):
        links(on_open=fail)
    until(lambda: not amqp_peer.peer.sockets)


# Heartbeats.


@pytest.fixture
def beating(amqp_peers: AmqpPeers) -> Iterator[tuple[AmqpLink, BrokerEnd]]:
    """A link that agreed on one second with its broker."""
    peer = amqp_peers((2047, 131072, 1))
    links = Links(peer.url)
    link = links()
    assert link.heartbeat == 1
    yield link, peer.end
    links.close()


def lose(link: AmqpLink) -> Event:
    """Set when the link is lost."""
    lost = Event()
    link.on_lost = lambda exc: lost.set()
    return lost


def test_a_peer_that_falls_silent_is_noticed(beating: tuple[AmqpLink, BrokerEnd]) -> None:
    link, end = beating
    channel = link.channel()
    waiting = gevent.spawn(channel.queue_declare, "q")
    lost, began = lose(link), monotonic()
    assert lost.wait(WAIT)
    assert monotonic() - began >= 1.5
    assert isinstance(link.lost, ConnectionForced)
    assert "heartbeat is 1 s" in str(link.lost)
    assert end.heartbeats >= 2
    with pytest.raises(ConnectionForced):
        waiting.get(timeout=WAIT)


def test_a_hub_that_was_blocked_does_not_blame_its_peer(
    beating: tuple[AmqpLink, BrokerEnd],
) -> None:
    link, end = beating

    def beat() -> None:
        while True:
            end.send(b"\x08\x00\x00\x00\x00\x00\x00\xce")
            gevent.sleep(0.2)

    peer = gevent.spawn(beat)
    lost = lose(link)
    for _ in range(2):
        assert not lost.wait(0.5)
        native_sleep(2.6)  # what programs do to their hubs
    assert not lost.wait(1.5)
    assert link.is_open
    peer.kill()
    assert lost.wait(WAIT)


def test_silence_while_reading_is_paused_is_no_missed_heartbeat(
    beating: tuple[AmqpLink, BrokerEnd],
) -> None:
    link, end = beating
    lost = lose(link)
    link.budget.hold(65 << 20)
    assert link.stream is not None
    assert link.stream.is_paused
    assert not lost.wait(3.0)
    heartbeats = end.heartbeats
    assert heartbeats >= 3  # ours go on
    link.budget.release(65 << 20)
    assert not lost.wait(1.0)
    assert lost.wait(WAIT)


def test_inboxes_beyond_the_hard_limit_end_the_link_with_advice(
    link: AmqpLink, end: BrokerEnd
) -> None:
    channel = link.channel()
    waiting = gevent.spawn(channel.queue_declare, "q")
    end.expect(spec.Queue.Declare)
    link.budget.hold(257 << 20)
    assert link.stream is not None
    assert not link.stream.is_paused  # somebody waits for an answer
    end.send(b"\x08\x00\x00\x00\x00\x00\x00\xce")
    with pytest.raises(RecoverableConnectionError, match="set prefetch_count"):
        waiting.get(timeout=WAIT)


@pytest.mark.parametrize(("asked", "agreed"), [(0.3, 1), (2.5, 3), (0, 0), (100, 60)])
def test_heartbeats_are_whole_seconds_and_the_smaller_of_both(
    amqp_peers: AmqpPeers, asked: float, agreed: int
) -> None:
    peer = amqp_peers((2047, 131072, 60))
    links = Links(peer.url)
    link = links(heartbeat=asked)
    assert link.heartbeat == agreed
    _, _, arguments, _ = peer.end.expect(spec.Connection.TuneOk)
    assert arguments == pack(">HIH", 2047, 131072, agreed)
    links.close()
