"""The form in which brokers that know nothing of AMQP store a message (kombu's envelope).

A dict for JSON: ``body`` as text, ``content-type``, ``content-encoding``, ``headers``, and
``properties``, in which ``body_encoding`` says how the text stands for the bytes, ``delivery_tag``
names the message, and ``delivery_info`` has exchange and routing key.

A delivery reads its envelope when its fields are first used.
"""

from __future__ import annotations

import base64
import json
import os
from binascii import a2b_base64
from collections.abc import Mapping, MutableMapping
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, ValidationError, convert, field
from msgspec.json import Decoder

from greenconn.broker.errors import Method, invalid_argument
from greenconn.delays import LONGEST
from greenconn.encoding import charsets, plain_text, safe_repr
from greenconn.exceptions import (
    DecodeError,
)
from greenconn.jsoncodec import NestedTooDeeply, dumps, encode_body, loads, object_hook
from greenconn.message import Message, computed_slot, staged_slot
from greenconn.serialization import decode_error
from greenconn.serialization import loads as loads_body

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel
    from greenconn.broker.port import Claimed


class TagMaker:
    """Unique delivery tags in kombu's form (UUIDs)."""

    def __init__(self) -> None:
        digits = os.urandom(10).hex()
        self._prefix = f"{digits[:8]}-{digits[8:12]}-4{digits[12:15]}-a{digits[15:18]}-".encode()
        self._numbers = count(int.from_bytes(os.urandom(5), "big"))

    def next(self) -> bytes:
        """Return the next tag."""
        return b"%b%012x" % (self._prefix, next(self._numbers))


#: Kombu's form of a message that is to be sent: body, content-type, content-encoding, headers and
#: properties.
Envelope = dict[str, Any]

#: Values that cannot change, and are of no class but these.
_PLAIN: Final = frozenset({str, int, float, bool, bytes, type(None)})


def copied(value: Any) -> Any:
    """Return *value* with the tables and lists in it made anew, and its texts of class ``str``."""
    if value.__class__ in _PLAIN:
        return value
    if isinstance(value, dict):
        return {
            name if name.__class__ is str else plain_text(name): each
            if each.__class__ in _PLAIN
            else copied(each)
            for name, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [copied(each) for each in value]
    return plain_text(value)


def encoded(text: str, encoding: str | None) -> bytes:
    """Return a body of text as bytes: UTF-8 where no codec has the name *encoding*."""
    try:
        return text.encode(encoding or "utf-8")
    except LookupError:
        return text.encode()


def prepared(
    body: Any,
    priority: int | None,
    content_type: str | None,
    content_encoding: str | None,
    headers: Mapping[str, Any] | None,
    properties: MutableMapping[str, Any] | None,
) -> Envelope:
    """Return kombu's form of a message: a snapshot of what may be changed later.

    Raises:
        TypeError: the body is neither text nor bytes.
    """
    own: dict[str, Any] = dict(properties or ())
    for name, value in own.items():
        if value.__class__ not in _PLAIN or name.__class__ is not str:
            own = copied(own)
            break
    own.setdefault("priority", priority or 0)
    if body.__class__ is str or isinstance(body, str):
        content_encoding = content_encoding or "utf-8"
    elif isinstance(body, (bytearray, memoryview)):
        body = bytes(body)
    elif not isinstance(body, bytes):
        raise TypeError(f"a body must be text or bytes, got {type(body).__name__}")
    if content_encoding.__class__ is not str:
        content_encoding = plain_text(content_encoding)
    if content_type.__class__ is not str:
        content_type = plain_text(content_type)
    return {
        "body": body,
        "content-encoding": content_encoding,
        "content-type": content_type,
        "headers": copied(headers) if headers else {},
        "properties": own,
    }


def head_of(envelope: Envelope) -> str:
    """Return an envelope without its body as JSON text.

    Raises:
        ValueError: a header or a property is nothing for JSON.
    """
    rest = {**envelope}
    del rest["body"]
    try:
        return encode_body(rest)
    except UNSENDABLE:
        raise unsendable(envelope["headers"], envelope["properties"]) from None


def joined(head: str, body: bytes) -> Envelope | None:
    """Return the envelope of a text made by :func:`head_of`; None: it is no envelope."""
    try:
        envelope: Envelope = read_envelope(head)
        envelope["body"] = body
        return envelope
    except (ValueError, TypeError, RecursionError):  # a stranger may have written it
        return None


def lifetime_of(expiration: Any) -> float:
    """Return the seconds that the property ``expiration`` lets a message wait, a hundred years at most.

    Raises:
        PreconditionFailed: it is no number of milliseconds from 0 up.
    """
    try:
        milliseconds = int(expiration)
    except (TypeError, ValueError, OverflowError):
        milliseconds = -1
    if milliseconds < 0:
        raise invalid_argument(
            f"invalid expiration {safe_repr(expiration)[:100]}", Method.BASIC_PUBLISH
        )
    return min(milliseconds, LONGEST * 1000) / 1000


def level_of(priority: Any, highest: int) -> int:
    """Return a priority as a number from 0 to *highest*; 0 for what is none (kombu's reading)."""
    try:
        return max(0, min(int(priority), highest))
    except (TypeError, ValueError, OverflowError):
        return 0


#: In errors: what was done when it went wrong.
WHAT = "out of its envelope"

#: What the library reads of an envelope: properties, headers, content type, content encoding and body.
#: (No named tuple: to make one costs as much as a tenth of the decoding.)
Contents = tuple[dict[str, Any], dict[str, Any], Any, Any, Any]


class _Usual(Struct, forbid_unknown_fields=True, gc=False):
    """An envelope whose body is in base 64; any other one raises."""

    properties: dict[str, Any]
    body: bytes | None = None
    headers: dict[str, Any] | None = None
    content_type: Any = field(default=None, name="content-type")
    content_encoding: Any = field(default=None, name="content-encoding")


_decode_usual: Final = Decoder(_Usual).decode
#: What most envelopes begin with.
_BEGINNING: Final = b'{"body": "'


def usual_contents(raw: bytes) -> Contents | None:
    """Open an envelope in one step; None: not all of it is as most programs write it."""
    try:
        found = _decode_usual(raw)
    except Exception:  # that of older versions is no ValueError
        return None
    # What may stand for a typed value is left to the codec: not the body, which comes first.
    behind = raw.find(b'"', len(_BEGINNING)) if raw.startswith(_BEGINNING) else 0
    if raw.find(b"__type__", behind) >= 0 or raw.find(b"\\") >= 0:
        return None
    properties = found.properties
    if properties.get("body_encoding") != "base64":
        return None  # the body is text, which may look as if it were base 64
    if properties.get("delivery_info").__class__ is not dict:
        return None
    return properties, found.headers or {}, found.content_type, found.content_encoding, found.body


def contents_of_head(head: str, body: bytes) -> Contents:
    """Open an envelope of which the body is kept apart.

    Raises:
        DecodeError: it is not JSON, or is not what an envelope must be.
    """
    if "__type__" not in head and "\\" not in head:  # what may stand for a typed value
        try:
            found = _decode_usual(head)
        except Exception:  # that of older versions is no ValueError
            return contents_in(joined(head, body))
        properties = found.properties
        if properties.get("delivery_info").__class__ is dict and not properties.get(
            "body_encoding"
        ):
            headers, kind, encoding = found.headers, found.content_type, found.content_encoding
            return properties, headers or {}, kind, encoding, body
    return contents_in(joined(head, body))


class UnreadableBody(DecodeError):
    """The body of an envelope cannot be read.

    Attributes:
        contents: its parts, with the body as it was stored.
    """

    contents: Contents


def unusual_contents(raw: bytes) -> Contents:
    """Open any envelope of which the body is text, or bytes in base 64.

    Raises:
        DecodeError: it is not JSON, or is not what an envelope must be.
        UnreadableBody: the body is neither; has the other parts.
    """
    try:
        envelope = read_envelope(raw)
    except Exception as exc:
        raise decode_error(exc, WHAT) from exc
    return contents_in(envelope)


def read_envelope(raw: str | bytes) -> Any:
    """Return a JSON value in which an object that only looks like a typed value stays an object.

    Integers with more digits than Python reads become text.

    Raises:
        TypeError, ValueError: it is not JSON.
    """
    try:
        return loads(raw)
    except NestedTooDeeply:
        raise
    except ValueError:
        return loads(raw, _load_anyhow, object_hook=_typed_or_not)


def _typed_or_not(value: dict[str, Any]) -> Any:
    try:
        return object_hook(value)
    except ValueError:
        return value


def _integer(digits: str) -> int | str:
    try:
        return int(digits)
    except ValueError:
        return digits


_load_anyhow: Final = partial(json.loads, parse_int=_integer)


def contents_in(envelope: Any) -> Contents:
    """Open an envelope that was read.  A body that is neither text nor bytes is taken for JSON.

    Raises:
        DecodeError: it is not what an envelope must be.
        UnreadableBody: its body cannot be read; has the other parts.
    """
    try:
        properties, headers, content_type, content_encoding, body = contents = checked(envelope)
    except Exception as exc:
        raise decode_error(exc, WHAT) from exc
    try:
        if not isinstance(envelope["properties"], dict):
            raise TypeError("properties must be an object, which says how the body is encoded")
        if body is None:
            return contents
        if not isinstance(body, (str, bytes)):
            # Its publisher did not serialize it.
            return properties, headers, content_type, content_encoding, dumps(body)
        encoding = properties.get("body_encoding")
        if encoding == "base64":
            return properties, headers, content_type, content_encoding, _from_base64(body)
        if encoding is not None and encoding.lower() not in ("", "utf-8"):
            raise LookupError(f"body_encoding must be 'base64' or 'utf-8', got {encoding[:40]!r}")
    except Exception as exc:
        error = UnreadableBody(str(decode_error(exc, WHAT)))
        error.contents = contents
        raise error from exc
    return contents


def _from_base64(body: str | bytes) -> bytes:
    if isinstance(body, str):
        try:
            return convert(body, bytes)  # in a third of the time
        except ValidationError:
            pass  # that reads more, such as text with line feeds
    return a2b_base64(body)


def checked(envelope: Any) -> Contents:
    """Return the parts of an envelope, which may come from an untrusted program.

    Properties, headers and ``delivery_info`` that are no objects are taken for empty ones.

    Raises:
        TypeError, LookupError: it is no object with properties.
    """
    properties, headers = envelope["properties"], envelope.get("headers")
    if not isinstance(properties, dict):
        properties = {}
    if not isinstance(headers, dict):
        headers = {}
    info = properties.get("delivery_info")
    if info is not None and not isinstance(info, dict):
        properties = {**properties, "delivery_info": {}}
    body = envelope.get("body")
    return properties, headers, envelope.get("content-type"), envelope.get("content-encoding"), body


def mark_redelivered(envelope: Any) -> None:
    """Note in an envelope that its message was delivered before, where kombu notes it.

    Raises:
        Exception: it is no envelope; a stranger's may be of any form.
    """
    properties = envelope["properties"]
    info = properties.get("delivery_info")
    if not isinstance(info, dict):
        info = properties["delivery_info"] = {}
    info["redelivered"] = True


class Base64:
    """Bytes as text."""

    def encode(self, s: str | bytes) -> str:
        """Return the text for *s*."""
        return base64.b64encode(s.encode() if isinstance(s, str) else s).decode()

    def decode(self, s: str | bytes) -> bytes:
        """Return the bytes that the text *s* stands for."""
        return base64.b64decode(s)


#: What the codec raises.
UNSENDABLE = (TypeError, ValueError, RecursionError)


def check_headers(headers: Mapping[str, Any]) -> None:
    """Refuse headers that cannot be sent.

    Raises:
        ValueError: names the first one, and no value, which may be a secret.
    """
    try:
        dumps(headers)
    except UNSENDABLE:
        raise unsendable(headers, {}) from None


def envelope_json(envelope: Envelope) -> str:
    """Return an envelope as JSON text of ASCII, which each broker takes.

    Raises:
        TypeError, ValueError, RecursionError: a header or a property is nothing for JSON.
    """
    text = encode_body(envelope)
    return text if text.isascii() else dumps(envelope)


def unsendable(headers: Mapping[str, Any] | None, properties: Mapping[str, Any]) -> ValueError:
    """Return the error of a message of which a header or a property is nothing for JSON."""
    for what, given in (("header", headers or {}), ("property", properties)):
        for key, value in given.items():
            try:
                dumps({key: value})
            except UNSENDABLE:
                kind = type(value).__name__
                inside = ", or in it," if isinstance(value, (Mapping, list, tuple)) else ""
                return ValueError(
                    f"{what} {key!r}: a value of type {kind}{inside} cannot be sent as JSON"
                )
    return ValueError("the headers cannot be sent as JSON")


#: How far a delivery has been read.
_RAW, _READ, _UNPACKED = range(3)
_set_properties, _set_headers, _set_content_type, _set_content_encoding, _set_body, _set_errors = (
    vars(Message)[name].__set__
    for name in ("properties", "headers", "content_type", "content_encoding", "body", "errors")
)
_headers, _content_type, _content_encoding, _body, _errors = (
    vars(Message)[name].__get__
    for name in ("headers", "content_type", "content_encoding", "body", "errors")
)


class Delivery(Message):
    """A message that a channel delivered; its envelope is read when it is first looked at.

    One that cannot be read has its raw bytes as body, and the reason in ``errors``, so that decoding
    it raises.

    Arguments:
        tag: what the channel calls it.
        number: position among all that this connection took.
        raw: what is shown where the envelope cannot be read.
        queue: where it was taken from, and goes back to.
        consumer: who gets it; None for ``basic_get``.
        waiting: messages left in the queue, for ``basic_get``, where that is known.

    Attributes:
        handle: what the broker knows it by.
        is_held: the broker holds it for us until it is settled.
    """

    __slots__ = ("_stage", "consumer", "handle", "is_held", "number", "queue", "raw", "waiting")

    handle: Any

    properties = staged_slot("properties", _READ)
    headers = staged_slot("headers", _READ)
    content_type = staged_slot("content_type", _READ)
    content_encoding = staged_slot("content_encoding", _READ)
    body = staged_slot("body", _UNPACKED)
    errors = staged_slot("errors", _UNPACKED)
    delivery_info = computed_slot("delivery_info")

    def __init__(
        self,
        channel: StoreChannel[Any] | None,
        tag: str,
        number: int,
        raw: bytes,
        queue: str,
        consumer: Any = None,
        waiting: int | None = None,
    ) -> None:
        self.channel = channel
        self.delivery_tag = self.handle = tag
        self.number = number
        self.raw = raw
        self.queue = queue
        self.consumer = consumer
        self.waiting = waiting
        self.is_held = True
        self.accept = None
        self._stage = _RAW
        self._state = "RECEIVED"
        self._decoded_cache = None

    @property
    def claimed(self) -> Claimed:
        """The message itself, which outlives its link."""
        raise NotImplementedError

    @property
    def envelope(self) -> Envelope | None:
        """Kombu's form; None where it cannot be read."""
        raise NotImplementedError

    @property
    def deliveries(self) -> int:
        """The number of deliveries before this one, as far as the broker can tell."""
        raise NotImplementedError

    def _came_with(self, name: str) -> bool:
        if self._stage == _RAW:
            self._read(_READ)
        return name in _headers(self)

    def _send_back(self) -> None:
        self.channel.requeue_unseen(self.delivery_tag)

    def _contents(self) -> Contents:
        """Return what is in the envelope.

        Raises:
            DecodeError: it cannot be read.
        """
        contents = usual_contents(self.raw)
        return unusual_contents(self.raw) if contents is None else contents

    def _decode(self) -> Any:
        if self._stage == _RAW:
            self._read(_READ)
        if self._stage == _UNPACKED and not _errors(self):
            return loads_body(
                _body(self), _content_type(self), _content_encoding(self), self.accept
            )
        return super()._decode()

    def _read(self, stage: int) -> None:
        """Fill the slots up to *stage*.  May switch for a body that is compressed."""
        # By the slots themselves: the properties above would look at the stage each time.
        if self._stage == _RAW:
            try:
                properties, headers, content_type, encoding, body = self._contents()
            except DecodeError as exc:
                self._leave_unread(exc)
                return
            _set_properties(self, properties)
            _set_headers(self, headers)
            _set_content_type(self, content_type)
            _set_content_encoding(self, encoding)
            if body is not None and headers.get("compression"):
                _set_body(self, body)
                self._stage = _READ
            else:
                if body.__class__ is bytes:
                    try:  # as as_text(), without the call
                        known = charsets[encoding]
                        if known is not None:
                            body = str(body, known)
                    except (LookupError, UnicodeError, TypeError):
                        pass
                _set_body(self, body)
                _set_errors(self, [])
                self._stage = _UNPACKED
        if self._stage < stage:
            errors: list[Any] = []
            body = self._unpacked(_body(self), self.headers.get("compression"), errors)
            # Unpacking may have let others run: the stage changes when both are there.
            _set_body(self, body)
            _set_errors(self, errors)
            self._stage = _UNPACKED

    def _leave_unread(self, exc: DecodeError) -> None:
        """Have decoding raise, as not all of the envelope can be read; keep what can."""
        self._stage = _UNPACKED
        _set_errors(self, [])
        self._note_error()
        contents: Contents = {}, {}, None, None, self.raw
        if isinstance(exc, UnreadableBody):
            contents = exc.contents
        self.properties, self.headers, self.content_type, self.content_encoding, body = contents
        _set_body(self, body)

    @property
    def redelivered(self) -> bool:
        """Whether it was delivered before; a delivery that did not count is noted in the envelope."""
        info = self.properties.get("delivery_info") or {}
        return bool(info.get("redelivered"))

    def _delivery_info(self) -> dict[str, Any]:
        info = self.properties.get("delivery_info") or {}
        exchange, routing_key = info.get("exchange"), info.get("routing_key")
        found: dict[str, Any] = {
            "delivery_tag": self.delivery_tag,
            "redelivered": self.redelivered,
            "exchange": exchange if isinstance(exchange, str) else "",
            "routing_key": routing_key if isinstance(routing_key, str) else self.queue,
        }
        if self.consumer is not None:
            found["consumer_tag"] = self.consumer.tag
        if self.waiting is not None:
            found["message_count"] = self.waiting
        return found
