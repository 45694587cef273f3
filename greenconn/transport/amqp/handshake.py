"""The login of an AMQP connection, renewed secrets, and the errors with which a broker ends one."""

from __future__ import annotations

import logging
import struct
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import ref

from amqp import sasl, spec
from amqp.exceptions import error_for_code
from amqp.serialization import dumps

from greenconn.exceptions import AMQPError, ConnectionError, FrameError
from greenconn.green.deadline import Deadline
from greenconn.green.inbox import Inbox
from greenconn.green.retry import Renewal
from greenconn.green.slot import Slot
from greenconn.options import BROKER_HEARTBEAT
from greenconn.wire.amqp import (
    FRAME_MIN,
    UNREADABLE,
    ids_of,
    method_frame,
    method_name,
    read_arguments,
    unreadable,
)

if TYPE_CHECKING:
    from greenconn.transport.amqp.link import AmqpLink

logger = logging.getLogger("greenconn.transport.amqp")

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
            if self.is_done and deadline.has_ended:
                raise TimeoutError("timed out")  # else a peer that never stops would not be noticed
            deadline = deadline.renewed()
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
            raise FrameError(f"unexpected method {method_name(ids)} during the handshake")
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


#: ``connection.update-secret``, RabbitMQ's extension, which the amqp package does not know.
UPDATE_SECRET: Final = (10, 70)

REASON: Final = "the token is renewed before it ends"


class Secret:
    """The login's secret in one life of a connection, renewed at the broker before it expires.

    The broker replies in order, so that each reply is the oldest waiter's; one that is killed keeps its
    place.  The broker ends the connection over a secret that it refuses (530).

    Arguments:
        link: that life.
    """

    def __init__(self, link: AmqpLink) -> None:
        #: It refers to this object: its memory must not wait for the collector.
        self._link = ref(link)
        self._waiters: deque[Slot[None]] = deque()
        self._ask: Callable[[], Any] | None = None
        self._renewal = Renewal(self._renew, logger, link.where)

    def update(self, secret: str, reason: str, deadline: Deadline) -> None:
        """Update the secret at the broker, and wait until it has accepted it.  May switch.

        Arguments:
            reason: for the broker's log; 255 bytes at most.

        Raises:
            TimeoutError: no reply came before the deadline.
            ConnectionError: the broker refused it, or the connection ended.
        """
        link = self._link()
        assert link is not None, "it is the caller"
        arguments = dumps("Ss", (secret, reason))
        if link.writer.must_wait:
            link.flow_control.wait(deadline)
        link.check_open()
        # Appended before it is written, for that may be the end of the connection.
        slot: Slot[None] = Slot()
        self._waiters.append(slot)
        link.write_method(UPDATE_SECRET, arguments)
        link.budget.begin_wait()
        try:
            slot.wait(deadline)
        except TimeoutError:
            if not slot.has_expired:
                raise
            raise TimeoutError(f"{link.where} did not accept the new secret in time") from None
        finally:
            link.budget.end_wait()

    def keep(self, secret: object, renew: Callable[[], Any]) -> None:
        """Renew *secret*, and each one after it, before it expires, as long as the connection lives.

        Arguments:
            secret: that of the login.
            renew: returns a new one; may switch.
        """
        self._ask = renew
        self._renewal.keep(secret)

    def _renew(self) -> object:
        link = self._link()
        if link is None or self._ask is None:
            return None
        secret = self._ask()
        if secret is None:
            raise TypeError("the password of a login must be text, got None")
        link.check_open()
        self.update(secret, REASON, Deadline(link.options.reply_timeout))
        logger.debug(
            "%s: the credentials were renewed", link.where, extra={"connection": link.where}
        )
        return secret

    # In the reader or the hub: nothing here may switch or run user code.

    def on_ok(self) -> None:
        """Note that the broker has accepted the oldest secret that waits."""
        if self._waiters:
            self._waiters.popleft().offer(None)

    def stop(self, exc: BaseException) -> None:
        """Stop, as the connection has ended."""
        self._renewal.stop()
        waiters, self._waiters = self._waiters, deque()
        for slot in waiters:
            slot.fail(exc)

    def forget(self) -> None:
        """After a fork, in the child: the timer is the parent's."""
        self._renewal.forget()


#: Part of the broker's text (of RabbitMQ 3.10 to 4.3) -> what the user can do.  A broker may permit by
#: its configuration what its version denies by default, so nothing is refused because of a version.
_REMEDIES: Final = (
    (
        "Login was refused",
        "check user, password and permissions in the URL; guest may log in from the broker's own "
        "machine only",
    ),
    (
        "connection limit (",
        "close some, or raise the limit: rabbitmqctl set_vhost_limits and set_user_limits",
    ),
    (
        "NOT_ALLOWED - vhost",
        "check that the virtual host in the URL exists and the user may use it; "
        "the one that is named / is written as two slashes at the end",
    ),
    (
        "NOT_ALLOWED - access to vhost",
        "check that the virtual host in the URL exists and the user may use it: rabbitmqctl "
        "set_permissions -p vhost user '.*' '.*' '.*'",
    ),
    (
        " refused for user ",
        "rabbitmqctl list_user_permissions lists what that user may configure, write and read",
    ),
    ("inequivalent arg", "it exists with other arguments: use those, or delete it"),
    (
        "`transient_nonexcl_queues`",
        "this RabbitMQ does not permit queues that are neither durable nor exclusive: declare it with "
        "durable=True, and expires=... if it should be deleted when unused, or with exclusive=True",
    ),
    (
        "`global_qos`",
        "this RabbitMQ does not permit a prefetch for a whole channel: set it without apply_global",
    ),
    ("`queue_master_locator`", "leave out the queue argument x-queue-master-locator"),
    (
        "does not support global qos",
        "set the prefetch without apply_global; where the queue is declared on the same connection "
        "that is done for you",
    ),
    (
        "not supported by stream queues",
        "streams are read by consumers with an offset (spawn_consumer(offset=...), or the consumer "
        "argument x-stream-offset)",
    ),
    (
        "invalid arg 'x-max-priority'",
        "only classic queues have it: leave out max_priority, since a quorum queue has priorities of "
        "itself, or declare the queue with x-queue-type=classic",
    ),
    (
        "delivery acknowledgement on channel",
        "a message was not acknowledged within the broker's consumer timeout: ack sooner, "
        "lower the prefetch_count, or raise consumer_timeout",
    ),
    ("frame_max =", "RabbitMQ 4.1 and later need at least 8192: raise the option frame_max"),
)


def with_remedy(text: str) -> str:
    """Return the broker's *text*, followed by a remedy if one is known."""
    for words, remedy in _REMEDIES:
        if words in text:
            return f"{text} ({remedy})"
    return text


def closing_error(payload: bytes) -> BaseException:
    """Return the error that ``connection.close`` stands for."""
    code, text, class_id, method_id = read_arguments(_CLOSE, "BsBB", payload)
    # (0, 0) is no method, and would be shown as one.
    method = (class_id, method_id) if class_id else None
    error: BaseException = error_for_code(code, with_remedy(text), method, ConnectionError)
    return error


def opening_error(
    exc: BaseException, where: str, step: str, deadline: Deadline, hint: str = ""
) -> BaseException:
    """Return an error of the same class whose text names the broker and the step."""
    if isinstance(exc, TimeoutError) and exc.errno is None:
        if step == "connecting":
            return exc
        return TimeoutError(f"{where}: no reply within {deadline.timeout:g} s ({step})")
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
