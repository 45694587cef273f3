"""The methods of AMQP 0-9-1: their ids, and the parsing of their arguments."""

from __future__ import annotations

import struct
from typing import Any, Final, TypeAlias

from amqp import spec
from amqp.serialization import loads

from greenconn.exceptions import FrameError

#: Class and method id, as the amqp package has them.
Method: TypeAlias = "tuple[int, int]"
#: The same as one number: ``class_id << 16 | method_id``
Ids: TypeAlias = int
#: ``(ids, arguments with their 4 bytes of ids, header, body)``
Reply: TypeAlias = "tuple[Ids, bytes, bytes | None, bytes | None]"

#: The reply to ``connection.update-secret``, RabbitMQ's extension, which the amqp package does not know.
UPDATE_SECRET_OK: Final = 10 << 16 | 71

#: Exceptions of parsing a method that is cut off, or has no text, time or table where one must be.
UNREADABLE: Final = (struct.error, LookupError, ValueError, OverflowError, RecursionError)
#: Of amqp's own reader: no byte for the bits; a time stamp that the platform does not know.
_ALSO: Final = (TypeError, OSError)


def read_arguments(ids: int, form: str, payload: bytes) -> list[Any]:
    """Return the arguments of a method.

    Arguments:
        ids: ``class_id << 16 | method_id``.
        form: their types, as amqp has them.
        payload: of the method frame.

    Raises:
        FrameError: they are not of that form.
    """
    try:
        values: list[Any] = loads(form, payload, 4)[0]
    except (*UNREADABLE, *_ALSO) as exc:
        raise unreadable(ids, exc) from exc
    return values


def reply_arguments(ids: Ids, payload: bytes) -> list[Any]:
    """Return the arguments of a reply, or of another method on a channel that has no content.

    Raises:
        FrameError: they are not of the form of that method.
    """
    form = _FORMS.get(ids)
    return read_arguments(ids, form, payload) if form else []


def unreadable(ids: int, exc: BaseException) -> FrameError:
    """Return the error for a method that cannot be read."""
    return FrameError(f"method {name_of(ids)} cannot be read: {exc or type(exc).__name__}")


def name_of(ids: int) -> str:
    """Return a method as the specification numbers it."""
    return f"{ids >> 16},{ids & 0xFFFF}"


def ids_of(method: Method) -> Ids:
    """Return class and method id as one number."""
    return method[0] << 16 | method[1]


def expected_of(methods: Method | list[Method]) -> frozenset[Ids]:
    """Return the ids of one method or of a list of them."""
    if isinstance(methods, list):
        return frozenset(ids_of(each) for each in methods)
    return frozenset((ids_of(methods),))


#: Types of the arguments of what the broker sends on a channel; others have none, or none of use.
_FORMS: Final[dict[Ids, str]] = {
    ids_of(spec.Channel.Close): "BsBB",
    ids_of(spec.Channel.Flow): "b",
    ids_of(spec.Channel.FlowOk): "b",
    ids_of(spec.Queue.DeclareOk): "sll",
    ids_of(spec.Queue.DeleteOk): "l",
    ids_of(spec.Queue.PurgeOk): "l",
    ids_of(spec.Basic.CancelOk): "s",
    ids_of(spec.Basic.ConsumeOk): "s",
    ids_of(spec.Basic.GetEmpty): "s",
    ids_of(spec.Basic.GetOk): "Lbssl",
}
