"""The handshake of an AMQP connection: from the protocol header to ``connection.open-ok``."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

from amqp import spec
from amqp.exceptions import error_for_code
from amqp.serialization import dumps

from greenconn.exceptions import AMQPError, ConnectionError, FrameError
from greenconn.green.deadline import Deadline
from greenconn.green.inbox import Inbox
from greenconn.transport.amqp.arguments import UNREADABLE, name_of, read_arguments, unreadable
from greenconn.transport.amqp.remedies import with_remedy
from greenconn.transport.amqp.rpc import ids_of
from greenconn.wire.amqp import method_frame

if TYPE_CHECKING:
    from greenconn.transport.amqp.connection import AmqpLink

__all__ = ["Handshake", "closing_error", "opening_error"]

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


def closing_error(payload: bytes) -> BaseException:
    """The error that ``connection.close`` stands for."""
    code, text, class_id, method_id = read_arguments(_CLOSE, "BsBB", payload)
    error: BaseException = error_for_code(
        code, with_remedy(text), (class_id, method_id), ConnectionError
    )
    return error


def opening_error(
    exc: BaseException, where: str, step: str, deadline: Deadline, hint: str = ""
) -> BaseException:
    """The same kind of error, saying which broker and which step it is about."""
    if isinstance(exc, TimeoutError) and exc.errno is None:
        if step == "connecting":
            return exc
        return TimeoutError(f"{where}: no answer within {deadline.timeout:g} s ({step})")
    if isinstance(exc, AMQPError):
        text = f"{exc.reply_text or exc} ({where}, {step})"
        error: BaseException = type(exc)(
            text, exc.method_sig, exc.method_name, exc.reply_code or None
        )
        return error
    if isinstance(exc, OSError):
        try:
            return type(exc)(exc.errno, f"{where}: {exc.strerror or exc} ({step}{hint})")
        except Exception:  # a class with arguments of its own
            return exc
    return exc
