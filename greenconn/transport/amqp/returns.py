"""What becomes of messages that the broker returns, since no queue takes them."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Any

from amqp import spec
from amqp.exceptions import error_for_code

from greenconn.exceptions import ChannelError
from greenconn.transport.amqp.message import ReturnedMessage, split_route
from greenconn.transport.amqp.methods import Reply
from greenconn.transport.amqp.properties import text_of
from greenconn.wire.confirms import ConfirmSequencer

if TYPE_CHECKING:
    from greenconn.transport.amqp.port import LinkPort
    from greenconn.transport.amqp.publishing import PendingConfirm

__all__ = ["Returning"]

# Of a return: its code, and how long its text is.
_code_and_size = Struct(">HB")


class Returning:
    """What a channel does with returned messages; mixed into ``Channel``."""

    connection: LinkPort
    events: dict[str, set[Any]]
    _confirms: ConfirmSequencer[PendingConfirm] | None

    #: Called by the reader, in place of the handlers in ``events``, with what they would get for a
    #: returned message.  It must not switch.
    return_sink: Callable[[Exception, str, str, ReturnedMessage], object] | None = None

    # In the reader: nothing here may switch or run user code.

    def _on_return(self, reply: Reply) -> None:
        _, payload, header, body = reply
        assert header is not None
        assert body is not None
        code, text, exchange, routing_key = _read_return(payload)
        if self._confirms is not None:
            publish = self._confirms.match_return(exchange, routing_key, header[12:], body)
            if publish is not None:
                publish.returned = (code, text)
                if publish.is_awaited:
                    return
        exc = error_for_code(code, text, spec.Basic.Return, ChannelError)
        message = ReturnedMessage(self, exchange, routing_key, header, body)
        if self.return_sink is not None:
            self.return_sink(exc, exchange, routing_key, message)
            return
        returned = (exc, exchange, routing_key, message)
        is_heard = bool(self.events["basic_return"])
        size = len(header) + len(body)
        self.connection.put_return(self._tell_returned, returned, size, is_heard=is_heard)

    def _tell_returned(self, returned: tuple[Any, ...]) -> None:
        # In the greenlet that drains.
        for handler in list(self.events["basic_return"]):
            handler(*returned)


def _read_return(payload: bytes) -> tuple[int, str, str, str]:
    """Code, text, exchange and routing key of a ``basic.return``; names may be no UTF-8."""
    code, size = _code_and_size.unpack_from(payload, 4)
    return code, text_of(payload[7 : 7 + size]), *split_route(payload[7 + size :])
