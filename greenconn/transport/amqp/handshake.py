"""The handshake of an AMQP connection: from the protocol header to ``connection.open-ok``."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING, Any, Final, cast

from amqp import sasl, spec
from amqp.serialization import dumps

from greenconn.exceptions import ConnectionError, FrameError
from greenconn.green.deadline import Deadline
from greenconn.green.inbox import Inbox
from greenconn.options import BROKER_HEARTBEAT
from greenconn.transport.amqp.errors import closing_error
from greenconn.transport.amqp.methods import (
    UNREADABLE,
    ids_of,
    name_of,
    read_arguments,
    unreadable,
)
from greenconn.wire.amqp import FRAME_MIN, method_frame

if TYPE_CHECKING:
    from greenconn.transport.amqp.link import AmqpLink

_CLOSE: Final = ids_of(spec.Connection.Close)
_OPEN_OK: Final = ids_of(spec.Connection.OpenOk)
_START: Final = ids_of(spec.Connection.Start)
_TUNE: Final = ids_of(spec.Connection.Tune)
_SECURE: Final = ids_of(spec.Connection.Secure)
#: The methods that the broker may send after each method, up to the end of the handshake.
_NEXT: Final[dict[int, frozenset[int]]] = {
    0: frozenset({_START}),
    _START: frozenset({_SECURE, _TUNE}),
    _SECURE: frozenset({_SECURE, _TUNE}),
    _TUNE: frozenset({_OPEN_OK}),
}
#: The size of a long string.
_size: Final = struct.Struct(">I")
#: Methods that may wait for the greenlet that connects.
_WAITING: Final = 64
#: The most channels of a connection, and seconds of a heartbeat, that fit into their fields.
_SHORT_MAX: Final = 65535
#: Bytes of a frame that we ask for, where the options do not say.
FRAME_MAX: Final = 131072
#: Bytes of a frame that every broker takes before the two sides have agreed on a size.
FIRST_FRAME_MAX: Final = 4096
#: Bytes of a frame that RabbitMQ 4.1 and later ask for.
FRAME_MAX_WANTED: Final = 8192
#: Our latest method -> the likely reason why the connection ended then, with brokers that do not send
#: one (those without the capability ``authentication_failure_close``).
_HINTS: Final[dict[tuple[int, int] | None, str]] = {
    spec.Connection.StartOk: ", at the login: are user name and password right?",
    spec.Connection.Open: ", at the virtual host: does it exist, and may the user access it?",
}


def rabbitmq_version(properties: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return major and minor version of a RabbitMQ; None if it is another broker or does not say.

    Arguments:
        properties: those that the server sent when the connection was opened.
    """
    if properties.get("product") != "RabbitMQ":
        return None
    parts = str(properties.get("version") or "").split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (IndexError, ValueError):
        return None


def login_mechanisms(
    method: str, userid: str | None, password: str | None, *, response: Any = None, given: Any = ()
) -> tuple[sasl.SASL, ...]:
    """Return the SASL mechanisms of the amqp package for a login, the best one first.

    Arguments:
        method: the name of the mechanism.
        userid, password: for PLAIN and AMQPLAIN.
        response: the response to a mechanism that is not known here.
        given: a mechanism, or several, in place of all that.

    Raises:
        ValueError: there is no such mechanism, or it needs a user name and a password.
    """
    if given:
        return (given,) if isinstance(given, sasl.SASL) else tuple(given)
    if method in ("PLAIN", "AMQPLAIN"):
        if userid is None or password is None:
            raise ValueError(f"login_method {method} needs a user name and a password")
        mechanism = sasl.PLAIN if method == "PLAIN" else sasl.AMQPLAIN
        return (mechanism(userid, password),)
    if method == "EXTERNAL":
        return (sasl.EXTERNAL(),)
    if method == "GSSAPI":
        return (sasl.GSSAPI(userid),)
    if response is not None:
        return (sasl.RAW(method.encode(), response),)
    raise ValueError(
        f"login_method must be PLAIN, AMQPLAIN, EXTERNAL or GSSAPI, or come with a login_response, "
        f"got {method!r}"
    )


class Handshake:
    """Agreement of the two sides, by start, secure, tune and open.

    It runs in the greenlet that connects: the reader only hands the broker's methods over, so that a
    login mechanism may take its time.

    Arguments:
        mechanisms: of the login; the first that the broker knows is used.
        virtual_host: of the broker.
        properties: the client properties.
        capabilities: extensions of the protocol, and whether they are wanted where the broker has them.
        locale: language of the broker's texts.
        channel_max: channels that we want at most; None or 0 is the broker's limit.
        frame_max: bytes of a frame that we want at most; 0 is the broker's limit, None is 128 KiB.
        heartbeat: seconds; ``BROKER_HEARTBEAT`` takes the broker's value, 0 is off.

    Attributes:
        is_done: the connection is open.
        channel_max, frame_max, heartbeat: what was agreed on, and what we want before; frame_max 0 is
            no limit.
        client_properties, server_properties: the properties that the two sides exchange.
        offered: names of the broker's login mechanisms.
    """

    def __init__(
        self,
        *,
        mechanisms: tuple[sasl.SASL, ...],
        virtual_host: str,
        properties: Mapping[str, Any],
        capabilities: Mapping[str, bool],
        locale: str,
        channel_max: int | None,
        frame_max: int | None,
        heartbeat: float | None,
    ) -> None:
        self.is_done = False
        self.channel_max: int = channel_max or _SHORT_MAX
        self.frame_max: int = FRAME_MAX if frame_max is None else frame_max
        self.heartbeat: int = min(ceil(heartbeat or 0), _SHORT_MAX)  # whole seconds on the wire
        self.client_properties: dict[str, Any] = dict(properties)
        self.server_properties: dict[str, Any] = {}
        self.offered: list[bytes] = []
        self._takes_brokers_heartbeat = heartbeat is BROKER_HEARTBEAT
        self._mechanisms = mechanisms
        self._virtual_host = virtual_host
        self._capabilities = capabilities
        self._locale = locale
        #: Frames of the reply to the broker's latest method.
        self._reply = b""
        #: Our latest method, and the broker's.
        self._last_sent: tuple[int, int] | None = None
        self._last_received = 0
        self._login_size = 0
        self._methods: Inbox[tuple[int, bytes]] = Inbox()

    def put(self, ids: int, payload: bytes) -> None:
        """Take a method of the broker over.  Called by the reader.

        Raises:
            FrameError: more came than any broker sends in a handshake.
        """
        if len(self._methods) >= _WAITING:
            raise FrameError(f"the broker sent more than {_WAITING} methods during the handshake")
        self._methods.put((ids, payload))

    def fail(self, exc: BaseException) -> None:
        """Tell the greenlet that connects that the stream has ended."""
        self._methods.fail(exc)

    def run(self, link: AmqpLink, deadline: Deadline) -> None:
        """Reply to the broker's methods until ``connection.open-ok``.  May switch.

        What came right behind that, before this greenlet ran, is handled too.

        Raises:
            TimeoutError: the deadline ended before.
            AMQPError: the broker refused, or does not keep to the protocol.
        """
        while not self.is_done or self._methods:
            if link.lost is not None and not self._methods:
                raise link.lost  # what came before the end of the stream is still handled
            ids, payload = self._methods.get(deadline)
            if deadline.has_ended:
                raise TimeoutError("timed out")  # else a peer that never stops would not be noticed
            try:
                self._handle(link, ids, payload)
            except (*UNREADABLE, AttributeError, TypeError) as exc:
                raise unreadable(ids, exc) from exc
            finally:
                self._write_reply(link)
            if ids == _TUNE and link.options.on_tune_ok is not None:
                link.options.on_tune_ok()  # here, for its errors are not the broker's

    def hint(self) -> str:
        """Return the likely reason if the broker ends the connection now without a close method."""
        if self._last_sent == spec.Connection.StartOk and self._login_size > FIRST_FRAME_MAX:
            return (
                f", at the login of {self._login_size} bytes: a broker accepts {FIRST_FRAME_MAX} "
                f"to 8192 "
                f"before a frame size is agreed on (RabbitMQ's initial_frame_max); is the password or "
                f"token too long?"
            )
        if self._last_sent == spec.Connection.Open and 0 < self.frame_max < FRAME_MAX_WANTED:
            return (
                f", at the virtual host: frame_max is {self.frame_max}, and RabbitMQ 4.1 and later need "
                f"at least {FRAME_MAX_WANTED}: raise the option frame_max"
            )
        return _HINTS.get(self._last_sent, "")

    def _handle(self, link: AmqpLink, ids: int, payload: bytes) -> None:
        if ids == _CLOSE:
            self._reply = method_frame(0, spec.Connection.CloseOk)
            self._last_sent = spec.Connection.CloseOk
            raise closing_error(payload)
        if self.is_done:
            link.on_method(ids, payload, None, None)
            return
        if ids not in _NEXT[self._last_received]:
            raise FrameError(f"unexpected method {name_of(ids)} during the handshake")
        if link.lost is not None:
            raise link.lost  # no reply can be sent any more
        self._last_received = ids
        if ids == _START:
            _, _, self.server_properties, mechanisms, _ = _start_arguments(payload)
            if isinstance(mechanisms, str):
                mechanisms = mechanisms.encode()
            self.offered = mechanisms.split(b" ")
            self._login(link)
        elif ids == _TUNE:
            self._tune(*_tune_arguments(payload))
        self.is_done = ids == _OPEN_OK

    def _login(self, link: AmqpLink) -> None:
        """Log in with the first mechanism that the broker knows."""
        properties = self.client_properties
        known = self.server_properties.get("capabilities") or {}
        wanted = {name: want for name, want in self._capabilities.items() if known.get(name)}
        capabilities = {**properties.pop("capabilities", {}), **wanted}
        if capabilities:  # else the broker may not know the name
            properties["capabilities"] = capabilities
        for each in self._mechanisms:
            if each.mechanism in self.offered:
                response = each.start(link)
                if response is not NotImplemented:
                    break
        else:
            ours = b", ".join(each.mechanism for each in self._mechanisms if each.mechanism)
            raise ConnectionError(
                f"no login mechanism in common: greenconn supports {ours.decode()}, the broker offers "
                f"{b', '.join(self.offered).decode()}; choose one with login_method"
            )
        login = _packed_login(each.mechanism, response, self._locale)
        self._reply = method_frame(0, spec.Connection.StartOk, _packed_table(properties) + login)
        self._last_sent = spec.Connection.StartOk
        self._login_size = len(self._reply)

    def _tune(self, channel_max: int, frame_max: int, heartbeat: int) -> None:
        """Agree on the smaller of both sides' limits, of which 0 is none, and open the virtual host."""
        if 0 < frame_max < FRAME_MIN:
            raise FrameError(
                f"frames of {frame_max} bytes offered; AMQP needs at least {FRAME_MIN}"
            )
        self.channel_max = min(channel_max or _SHORT_MAX, self.channel_max)
        self.frame_max = _smaller(frame_max, self.frame_max)
        if self._takes_brokers_heartbeat:
            self.heartbeat = heartbeat
        elif self.heartbeat:
            self.heartbeat = _smaller(heartbeat, self.heartbeat)
        agreed = (self.channel_max, self.frame_max, self.heartbeat)
        self._reply = _tuned(agreed, self._virtual_host)
        self._last_sent = spec.Connection.Open

    def _write_reply(self, link: AmqpLink) -> None:
        if self._reply:
            link.writer.write(self._reply)
            self._reply = b""


def _smaller(theirs: int, ours: int) -> int:
    """Return the smaller of two limits, of which 0 is none."""
    return min(theirs, ours) if theirs and ours else theirs or ours


# All but the login is the same each time, and packing and unpacking it is most of the work of a
# handshake.  None of it holds a secret.


@lru_cache(maxsize=16)
def _start_arguments(payload: bytes) -> Any:
    return read_arguments(_START, "ooFSS", payload)


def _packed_login(mechanism: bytes, response: str | bytes | None, locale: str) -> bytes:
    """Return the arguments of ``connection.start-ok`` behind the client properties."""
    login = response.encode("utf-8", "surrogatepass") if isinstance(response, str) else response
    prefix, suffix = _around_login(mechanism, locale)
    return b"".join((prefix, _size.pack(len(login or b"")), login or b"", suffix))


@lru_cache(maxsize=16)
def _around_login(mechanism: bytes, locale: str) -> tuple[bytes, bytes]:
    return dumps("s", (mechanism,)), dumps("s", (locale,))


@lru_cache(maxsize=16)
def _tune_arguments(payload: bytes) -> Any:
    return read_arguments(_TUNE, "BlB", payload)


@lru_cache(maxsize=16)
def _tuned(agreed: tuple[int, int, int], virtual_host: str) -> bytes:
    """Return the frames of ``connection.tune-ok`` and ``connection.open``."""
    return method_frame(0, spec.Connection.TuneOk, dumps("BlB", agreed)) + method_frame(
        0, spec.Connection.Open, dumps("ssb", (virtual_host, "", False))
    )


def _packed_table(properties: dict[str, Any]) -> bytes:
    texts = dict(properties)
    capabilities = texts.pop("capabilities", {})
    plain = capabilities and all(capabilities.values())
    if plain and set(map(type, texts.values())) == {str}:
        return _packed_texts(tuple(texts.items()), tuple(capabilities))
    return cast(bytes, dumps("F", (properties,)))


@lru_cache(maxsize=16)
def _packed_texts(texts: tuple[tuple[str, str], ...], capabilities: tuple[str, ...]) -> bytes:
    properties = {**dict(texts), "capabilities": dict.fromkeys(capabilities, True)}
    return cast(bytes, dumps("F", (properties,)))
