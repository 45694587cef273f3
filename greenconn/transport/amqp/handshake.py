"""The handshake of an AMQP connection: from the protocol header to ``connection.open-ok``.

``amqp.Connection`` knows the steps (start, secure, tune, open); here are the answers that differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING, Any, Final, cast

import amqp
from amqp import spec
from amqp.serialization import dumps

from greenconn._version import __version__
from greenconn.exceptions import FrameError
from greenconn.green.deadline import Deadline
from greenconn.green.inbox import Inbox
from greenconn.identity import program_name
from greenconn.options import BROKER_HEARTBEAT, AmqpOptions
from greenconn.transport.amqp.errors import closing_error
from greenconn.transport.amqp.methods import UNREADABLE, ids_of, name_of, read_arguments, unreadable
from greenconn.wire.amqp import FRAME_MIN, method_frame

if TYPE_CHECKING:
    from greenconn.transport.amqp.link import AmqpLink

__all__ = ["Agreement", "Handshake", "rabbitmq_version"]

_CLOSE: Final = ids_of(spec.Connection.Close)
_OPEN_OK: Final = ids_of(spec.Connection.OpenOk)
_START: Final = ids_of(spec.Connection.Start)
_TUNE: Final = ids_of(spec.Connection.Tune)
_SECURE: Final = ids_of(spec.Connection.Secure)
#: What the broker may say after what it said last, up to the end of the handshake.
_NEXT: Final[dict[int, frozenset[int]]] = {
    0: frozenset({_START}),
    _START: frozenset({_SECURE, _TUNE}),
    _SECURE: frozenset({_SECURE, _TUNE}),
    _TUNE: frozenset({_OPEN_OK}),
}
#: Methods that may wait for the greenlet that connects.
_WAITING: Final = 64
#: Bytes of a frame that every broker takes before the two sides have agreed on a size.
FIRST_FRAME_MAX: Final = 4096
#: Bytes of a frame that RabbitMQ 4.1 and later ask for.
FRAME_MAX_WANTED: Final = 8192
#: What we said last -> what the end of the connection may mean then, with brokers that do not say it
#: (those without the capability ``authentication_failure_close``).
_HINTS: Final[dict[tuple[int, int] | None, str]] = {
    spec.Connection.StartOk: ", at our login: are user name and password right?",
    spec.Connection.Open: ", at the virtual host: is there one of that name, and may we use it?",
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


class Agreement(amqp.Connection):
    """The side of a connection that amqp's handshake sees.

    Arguments:
        where: host and port, for amqp's own texts.
        userid, password, virtual_host: the login; with ``login_method='EXTERNAL'`` no password is sent.
        heartbeat: seconds; ``BROKER_HEARTBEAT`` takes the broker's value, 0 is off.
        options: see :class:`~greenconn.options.AmqpOptions`.
    """

    library_properties = {
        "product": "greenconn",
        "product_version": __version__,
        "platform": "Python",
        "information": "gevent messaging client",
    }

    def __init__(
        self,
        where: str,
        *,
        userid: str | None,
        password: str | None,
        virtual_host: str,
        login_method: str | None,
        heartbeat: float,
        options: AmqpOptions,
    ) -> None:
        properties = {"connection_name": options.connection_name or program_name()}
        super().__init__(
            host=where,
            userid=userid,
            password=password,
            login_method=login_method,
            login_response=options.login_response,
            authentication=options.authentication,
            virtual_host=virtual_host,
            locale=options.locale,
            client_properties={**properties, **(options.client_properties or {})},
            channel_max=options.channel_max,
            frame_max=options.frame_max,
            heartbeat=min(ceil(heartbeat or 0), 65535),  # whole seconds on the wire
            confirm_publish=options.confirm_publish,
        )
        if options.frame_max == 0:
            self.frame_max = 0  # which amqp takes for "not given"
        self.options = options
        self.handshake = Handshake()
        self._takes_brokers_heartbeat = heartbeat is BROKER_HEARTBEAT

    def _setup_listeners(self) -> None:
        self._callbacks.update(
            {
                spec.Connection.Start: self._on_start,
                spec.Connection.Secure: self._on_secure,
                spec.Connection.Tune: self._on_tune,
                spec.Connection.OpenOk: self._on_open_ok,
            }
        )

    def _on_tune(self, channel_max: int, frame_max: int, server_heartbeat: int) -> None:
        """Agree on the smaller of both sides' limits; 0 is no limit."""
        if self._takes_brokers_heartbeat:
            self.client_heartbeat = server_heartbeat
        if 0 < frame_max < FRAME_MIN:
            raise FrameError(f"frames of {frame_max} bytes offered; AMQP asks for {FRAME_MIN}")
        super()._on_tune(
            min(channel_max or 65535, self.channel_max),
            _smaller(frame_max, self.frame_max),
            server_heartbeat,
        )

    def send_method(
        self,
        sig: tuple[int, int],
        format: str | None = None,
        args: Any = None,
        content: Any = None,
        wait: Any = None,
        callback: Any = None,
        returns_tuple: bool = False,
    ) -> None:
        """Answer a method of the handshake.  Never switches, waits for nothing."""
        self.handshake.add(sig, format, args)
        if callback is not None:
            callback()


def _smaller(theirs: int, ours: int) -> int:
    """The smaller of two limits of which 0 is none."""
    return min(theirs, ours) if theirs and ours else theirs or ours


class Handshake:
    """Runs amqp's own steps (start, tune, open) in the greenlet that connects.

    The reader only hands the broker's methods over, so that a login mechanism may take its time.

    Attributes:
        answer: frames with which the broker's latest method is answered; they leave in one piece.
    """

    __slots__ = ("_heard", "_login_size", "_methods", "_said", "answer", "is_done")

    def __init__(self) -> None:
        self.is_done = False
        self.answer: list[bytes] = []
        self._said: tuple[int, int] | None = None
        self._login_size = 0
        self._heard = 0
        self._methods: Inbox[tuple[int, bytes]] = Inbox()

    def put(self, ids: int, payload: bytes) -> None:
        """A method came.  Called by the reader.

        Raises:
            FrameError: more came than any broker says in a handshake.
        """
        if len(self._methods) >= _WAITING:
            raise FrameError(f"more than {_WAITING} methods amid the handshake")
        self._methods.put((ids, payload))

    def fail(self, exc: BaseException) -> None:
        """The stream ended."""
        self._methods.fail(exc)

    def run(self, link: AmqpLink, deadline: Deadline) -> None:
        """Answer the broker's methods until it says that the connection is open.  May switch.

        What came right behind that, before this greenlet ran, is heard too.

        Raises:
            TimeoutError: it did not come so far.
            AMQPError: the broker refused, or does not keep to the protocol.
        """
        while not self.is_done or self._methods:
            if link.lost is not None and not self._methods:
                raise link.lost  # what came before the end of the stream is still heard
            ids, payload = self._methods.get(deadline)
            if deadline.has_ended:
                raise TimeoutError("timed out")  # else a peer that never stops would not be noticed
            try:
                self._take(link, ids, payload)
            except (*UNREADABLE, AttributeError, TypeError) as exc:
                raise unreadable(ids, exc) from exc
            finally:
                self._send_answer(link)
            if ids == _TUNE and link.options.on_tune_ok is not None:
                link.options.on_tune_ok()  # here, for its errors are not the broker's

    def hint(self, frame_max: int) -> str:
        """What it may mean when the broker ends the connection now without a word.

        Arguments:
            frame_max: what the two sides have agreed on, bytes; 0 is no limit.
        """
        if self._said == spec.Connection.StartOk and self._login_size > FIRST_FRAME_MAX:
            return (
                f", at our login of {self._login_size} bytes: a broker takes {FIRST_FRAME_MAX} to 8192 "
                f"before a frame size is agreed on (RabbitMQ's initial_frame_max); is the password or "
                f"token too long?"
            )
        if self._said == spec.Connection.Open and 0 < frame_max < FRAME_MAX_WANTED:
            return (
                f", at the virtual host: frame_max is {frame_max}, and RabbitMQ 4.1 and later ask for "
                f"{FRAME_MAX_WANTED} at least: raise the option frame_max"
            )
        return _HINTS.get(self._said, "")

    def add(self, sig: tuple[int, int], form: str | None, arguments: Any) -> None:
        """Answer with this method, behind those that were added before.  Never switches."""
        self._said = sig
        if not form:
            packed = b""
        elif sig == spec.Connection.StartOk:
            packed = _packed_table(arguments[0]) + dumps(form[1:], arguments[1:])
        else:
            packed = dumps(form, arguments)
        frame = method_frame(0, sig, packed)
        if sig == spec.Connection.StartOk:
            self._login_size = len(frame)
        self.answer.append(frame)

    def _send_answer(self, link: AmqpLink) -> None:
        if self.answer:
            link.writer.write(b"".join(self.answer))
            self.answer = []

    def _take(self, link: AmqpLink, ids: int, payload: bytes) -> None:
        if ids == _CLOSE:
            link.send_method(spec.Connection.CloseOk)
            raise closing_error(payload)
        if self.is_done:
            link.on_method(ids, payload, None, None)
            return
        method = link._METHODS.get((ids >> 16, ids & 0xFFFF))
        if method is None or ids not in _NEXT[self._heard]:
            raise FrameError(f"method {name_of(ids)} amid the handshake")
        if method.method_sig not in link._callbacks and link.lost is not None:
            raise link.lost  # nothing can be answered any more
        self._heard = ids
        if ids == _START:
            args = _start_arguments(method.args, payload)
        else:
            args = read_arguments(ids, method.args, payload) if method.args else []
        link._callbacks[method.method_sig](*args)
        self.is_done = ids == _OPEN_OK


# Server and client say the same of themselves each time, and the tables are most of the work of a
# handshake.  Neither holds a secret.


@lru_cache(maxsize=16)
def _start_arguments(form: str, payload: bytes) -> Any:
    return read_arguments(_START, form, payload)


def _packed_table(properties: dict[str, Any]) -> bytes:
    texts = dict(properties)
    capabilities = texts.pop("capabilities", {})
    plain = capabilities and all(capabilities.values())
    if plain and all(type(value) is str for value in texts.values()):
        return _packed_texts(tuple(texts.items()), tuple(capabilities))
    return cast(bytes, dumps("F", (properties,)))


@lru_cache(maxsize=16)
def _packed_texts(texts: tuple[tuple[str, str], ...], capabilities: tuple[str, ...]) -> bytes:
    properties = {**dict(texts), "capabilities": dict.fromkeys(capabilities, True)}
    return cast(bytes, dumps("F", (properties,)))
