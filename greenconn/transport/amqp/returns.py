"""Messages that the broker returns, since no queue takes them."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any

from amqp import spec
from amqp.exceptions import error_for_code

from greenconn.exceptions import ChannelError
from greenconn.transport.amqp.message import ReturnedMessage, split_route
from greenconn.transport.amqp.methods import Reply
from greenconn.transport.amqp.properties import text_of

if TYPE_CHECKING:
    from greenconn.transport.amqp.port import ChannelPort, LinkPort
    from greenconn.transport.amqp.publishing import Publisher

__all__ = ["Returns"]

# Of a return: its code, and how long its text is.
_code_and_size = Struct(">HB")


class Returns:
    """The messages of one channel that come back.

    Arguments:
        channel: the channel.
        link: the connection of the channel.
        publisher: the publisher of the channel.
    """

    __slots__ = ("_channel", "_link", "_publisher")

    def __init__(self, channel: ChannelPort, link: LinkPort, publisher: Publisher) -> None:
        self._channel = channel
        self._link = link
        self._publisher = publisher

    # In the reader: nothing here may switch or run user code.

    def on_return(self, reply: Reply) -> None:
        """Take a returned message over."""
        _, payload, header, body = reply
        assert header is not None
        assert body is not None
        code, text, exchange, routing_key = _read_return(payload)
        confirms = self._publisher.confirms
        if confirms is not None:
            publish = confirms.match_return(exchange, routing_key, header[12:], body)
            if publish is not None:
                publish.returned = (code, text)
                if publish.is_awaited:
                    return
        exc = error_for_code(code, text, spec.Basic.Return, ChannelError)
        channel = self._channel
        message = ReturnedMessage(channel, exchange, routing_key, header, body)
        if channel.return_sink is not None:
            channel.return_sink(exc, exchange, routing_key, message)
            return
        returned = (exc, exchange, routing_key, message)
        is_heard = bool(channel.events["basic_return"])
        size = len(header) + len(body)
        self._link.put_return(self._tell, returned, size, is_heard=is_heard)

    def _tell(self, returned: tuple[Any, ...]) -> None:
        # In the greenlet that drains.
        for handler in list(self._channel.events["basic_return"]):
            handler(*returned)


def _read_return(payload: bytes) -> tuple[int, str, str, str]:
    """Code, text, exchange and routing key of a ``basic.return``; names may be no UTF-8."""
    code, size = _code_and_size.unpack_from(payload, 4)
    return code, text_of(payload[7 : 7 + size]), *split_route(payload[7 + size :])
