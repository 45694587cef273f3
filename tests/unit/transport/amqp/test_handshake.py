"""What the two sides of a connection agree on, and how we log in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from amqp import sasl, spec
from amqp.serialization import dumps, loads
from gevent import Timeout

from greenconn.exceptions import ConnectionError, FrameError
from greenconn.green.deadline import Deadline
from greenconn.options import BROKER_HEARTBEAT
from greenconn.transport.amqp.handshake import Handshake, login_mechanisms, rabbitmq_version
from greenconn.wire.amqp import ids_of

CAPABILITIES = {"basic.nack": True, "connection.blocked": True}


class Writer:
    """Takes what is said to the broker."""

    def __init__(self) -> None:
        self.said: list[tuple[tuple[int, int], bytes]] = []

    def write(self, frames: bytes) -> None:
        while frames:
            size = int.from_bytes(frames[3:7], "big")
            payload, frames = frames[7 : 7 + size], frames[8 + size :]
            method = int.from_bytes(payload[:2], "big"), int.from_bytes(payload[2:4], "big")
            self.said.append((method, payload[4:]))


class Link:
    """A link whose broker has said everything already."""

    lost: BaseException | None = None
    options = SimpleNamespace(on_tune_ok=None)

    def __init__(self) -> None:
        self.writer = Writer()


def handshake(**changes: Any) -> Handshake:
    settings: dict[str, Any] = {
        "mechanisms": login_mechanisms("PLAIN", "guest", "secret"),
        "virtual_host": "here",
        "properties": {"product": "greenconn"},
        "capabilities": {"connection.blocked": True, "unheard": True},
        "locale": "en_US",
        "channel_max": None,
        "frame_max": None,
        "heartbeat": BROKER_HEARTBEAT,
    }
    return Handshake(**{**settings, **changes})


def run(
    made: Handshake,
    *,
    tune: tuple[int, int, int] = (2047, 131072, 60),
    mechanisms: str = "AMQPLAIN PLAIN",
) -> list[tuple[tuple[int, int], bytes]]:
    """Run *made* with a broker that says this; return what was said to it."""
    properties = {"product": "RabbitMQ", "capabilities": CAPABILITIES}
    start = dumps("ooFSS", (0, 9, properties, mechanisms, "en_US"))
    for method, arguments in (
        (spec.Connection.Start, start),
        (spec.Connection.Tune, dumps("BlB", tune)),
        (spec.Connection.OpenOk, dumps("s", ("",))),
    ):
        made.put(ids_of(method), b"\0\0\0\0" + arguments)
    link: Any = Link()
    with Timeout(10, AssertionError("it waits")):
        made.run(link, Deadline(5))
    assert made.is_done
    said: list[tuple[tuple[int, int], bytes]] = link.writer.said
    return said


def values(form: str, arguments: bytes) -> list[Any]:
    """The arguments of a method."""
    found: list[Any] = loads(form, arguments, 0)[0]
    return found


def test_the_steps() -> None:
    made = handshake()
    start_ok, tune_ok, opening = run(made)
    assert start_ok[0] == spec.Connection.StartOk
    properties, mechanism, response, locale = values("FsSs", start_ok[1])
    assert properties == {"product": "greenconn", "capabilities": {"connection.blocked": True}}
    assert (mechanism, response, locale) == ("PLAIN", "\0guest\0secret", "en_US")
    assert tune_ok[0] == spec.Connection.TuneOk
    assert values("BlB", tune_ok[1]) == [2047, 131072, 60]
    assert opening[0] == spec.Connection.Open
    assert values("ssb", opening[1]) == ["here", "", False]
    assert made.server_properties["product"] == "RabbitMQ"
    assert made.offered == [b"AMQPLAIN", b"PLAIN"]


def test_capabilities_of_the_program_are_kept() -> None:
    given = {"mine": True}
    made = handshake(properties={"capabilities": given})
    run(made)
    assert made.client_properties == {"capabilities": {"mine": True, "connection.blocked": True}}
    assert given == {"mine": True}


def test_no_capabilities_are_not_named() -> None:
    made = handshake(capabilities={"unheard": True})
    run(made)
    assert made.client_properties == {"product": "greenconn"}


@pytest.mark.parametrize(
    ("wanted", "offered", "agreed"),
    [
        ((None, None, BROKER_HEARTBEAT), (0, 0, 0), (65535, 131072, 0)),
        ((None, None, BROKER_HEARTBEAT), (10, 8192, 7), (10, 8192, 7)),
        ((5, 4096, 3), (10, 8192, 7), (5, 4096, 3)),
        ((50, 9000, 30), (10, 8192, 7), (10, 8192, 7)),
        ((0, 0, 30), (10, 0, 0), (10, 0, 30)),
        ((None, 0, 0), (10, 8192, 7), (10, 8192, 0)),
        ((None, 4096, None), (0, 0, 7), (65535, 4096, 0)),
        ((None, None, 1.2), (0, 0, 7), (65535, 131072, 2)),
        ((None, None, 1e9), (0, 0, 0), (65535, 131072, 65535)),
    ],
    ids=str,
)
def test_the_smaller_limit_is_agreed_on(
    wanted: tuple[Any, Any, Any], offered: tuple[int, int, int], agreed: tuple[int, int, int]
) -> None:
    made = handshake(channel_max=wanted[0], frame_max=wanted[1], heartbeat=wanted[2])
    said = dict(run(made, tune=offered))
    assert values("BlB", said[spec.Connection.TuneOk]) == list(agreed)
    assert (made.channel_max, made.frame_max, made.heartbeat) == agreed


def test_frames_below_the_least_are_refused() -> None:
    with pytest.raises(FrameError, match="frames of 100 bytes offered"):
        run(handshake(), tune=(1, 100, 0))


def test_no_mechanism_in_common() -> None:
    with pytest.raises(ConnectionError, match=r"supports PLAIN, the broker offers GSSAPI, SCRAM"):
        run(handshake(), mechanisms="GSSAPI SCRAM")


def test_a_mechanism_that_declines_is_passed_over() -> None:
    class Declining(sasl.EXTERNAL):  # type: ignore[misc]
        mechanism = b"AMQPLAIN"

        def start(self, connection: object) -> Any:
            assert isinstance(connection, Link)
            return NotImplemented

    made = handshake(mechanisms=(Declining(), sasl.PLAIN("u", "p")))
    assert values("FsSs", run(made)[0][1])[1] == "PLAIN"


@pytest.mark.parametrize(
    ("response", "sent"),
    [("gr\u00fcn", "gr\u00fcn"), (b"x" * 300, "x" * 300), ("", ""), (None, "")],
)
def test_the_response_of_a_mechanism_is_text_bytes_or_nothing(response: Any, sent: str) -> None:
    class Own(sasl.EXTERNAL):  # type: ignore[misc]
        mechanism = b"PLAIN"

        def start(self, connection: object) -> Any:
            return response

    start_ok = run(handshake(mechanisms=(Own(),)))[0]
    assert values("FsSs", start_ok[1])[1:] == ["PLAIN", sent, "en_US"]


def test_each_virtual_host_and_limit_is_said_as_it_is() -> None:
    for host, tune in (("one", (9, 8192, 5)), ("two", (9, 8192, 5)), ("two", (8, 8192, 5))):
        _, tune_ok, opening = run(handshake(virtual_host=host), tune=tune)
        assert values("BlB", tune_ok[1]) == list(tune)
        assert values("ssb", opening[1])[0] == host


@pytest.mark.parametrize(
    ("method", "name"), [("PLAIN", b"PLAIN"), ("AMQPLAIN", b"AMQPLAIN"), ("EXTERNAL", b"EXTERNAL")]
)
def test_mechanisms_by_name(method: str, name: bytes) -> None:
    (made,) = login_mechanisms(method, "u", "p")
    assert made.mechanism == name


def test_mechanisms_that_are_given() -> None:
    mine = sasl.EXTERNAL()
    assert login_mechanisms("PLAIN", None, None, given=mine) == (mine,)
    assert login_mechanisms("PLAIN", None, None, given=[mine, mine]) == (mine, mine)


def test_a_response_of_the_program() -> None:
    with pytest.warns(DeprecationWarning, match="login_response"):
        (made,) = login_mechanisms("MINE", None, None, response=b"hello")
    assert (made.mechanism, made.start(None)) == (b"MINE", b"hello")


def test_mechanisms_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="PLAIN needs a user name and a password"):
        login_mechanisms("PLAIN", "u", None)
    with pytest.raises(ValueError, match="got 'SCRAM'"):
        login_mechanisms("SCRAM", "u", "p")


@pytest.mark.parametrize(
    ("properties", "version"),
    [
        ({"product": "RabbitMQ", "version": "3.10.8"}, (3, 10)),
        ({"product": "RabbitMQ", "version": "4.3"}, (4, 3)),
        ({"product": "RabbitMQ", "version": "next"}, None),
        ({"product": "RabbitMQ"}, None),
        ({"product": "another", "version": "4.0"}, None),
        ({}, None),
    ],
)
def test_the_version(properties: dict[str, str], version: tuple[int, int] | None) -> None:
    assert rabbitmq_version(properties) == version
