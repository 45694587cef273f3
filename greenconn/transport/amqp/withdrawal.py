"""The good order in which consumers leave a channel that is about to be closed.

A channel that ends returns what was not answered on it to the queues, and RabbitMQ counts each such
message as delivered: a quorum queue drops it, or dead-letters it, at its delivery limit (20 by default
since 4.0), although no handler has ever seen it.  So the consumers are cancelled first, and what came
until the broker has answered and nobody has begun with is put back, one by one, before the channel
goes.  What a handler has begun with is left to the broker.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from greenconn.green.deadline import Deadline
from greenconn.transport.amqp.consumer import ChannelConsumer
from greenconn.transport.amqp.message import Delivery
from greenconn.transport.amqp.rpc import Call

if TYPE_CHECKING:
    from greenconn.transport.amqp.channel import Channel
    from greenconn.transport.amqp.connection import AmqpLink

__all__ = ["give_back_events", "withdraw"]


def withdraw(link: AmqpLink, channels: Collection[Channel], deadline: Deadline) -> None:
    """Have the broker send no more on *channels*, and put back what nobody has begun with.

    May switch.

    Raises:
        TimeoutError: the broker did not answer before the deadline.
        ConnectionError, ChannelError: the link or a channel ended meanwhile.
    """
    if link.gate.blocked is not None:
        return  # the broker does not read
    consumers: list[ChannelConsumer] = []
    calls: list[tuple[Channel, Call]] = []
    for channel in channels:
        mine = channel.acking_consumers()
        consumers += mine
        call = channel.cancel_all(mine)
        if call is not None:
            calls.append((channel, call))
    for channel, call in calls:
        link.wait_reply(call.slot, channel.channel_id, deadline.left())
    for consumer in consumers:
        consumer.give_back()
    if len(link.events):
        give_back_events(link, lambda consumer, message: message.channel in channels)
    for channel in channels:
        channel.finish_returns()


def give_back_events(link: AmqpLink, is_meant: Callable[[ChannelConsumer, Delivery], bool]) -> None:
    """Put back those deliveries among the events of *link* that are meant.  Never switches."""
    for event in link.events.clear():
        consumer, message = _delivery_of(*event)
        if consumer is None or message is None or not is_meant(consumer, message):
            link.events.put(event)
        else:
            consumer.give_back_event(event[0], message)


def _delivery_of(
    function: Callable[[Any], Any], argument: Any
) -> tuple[ChannelConsumer | None, Delivery | None]:
    consumer = getattr(function, "__self__", None)
    if not isinstance(consumer, ChannelConsumer) or consumer.no_ack:
        return None, None
    return consumer, argument if isinstance(argument, Delivery) else None
