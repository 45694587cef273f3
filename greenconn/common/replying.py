"""Replies to requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from greenconn.common.receiving import itermessages
from greenconn.entity import Exchange
from greenconn.messaging import Producer
from greenconn.serialization import registry as serializers

if TYPE_CHECKING:
    from greenconn.abc import Channel

__all__ = ["collect_replies", "send_reply"]


class _Request(Protocol):
    """The message that is replied to."""

    channel: Any
    content_type: Any
    content_encoding: Any
    properties: dict[str, Any]


def send_reply(
    exchange: Exchange | str | None,
    req: _Request,
    msg: Any,
    producer: Producer | None = None,
    retry: bool = False,
    retry_policy: dict[str, Any] | None = None,
    **props: Any,
) -> Any:
    """Publish *msg* as the reply to *req*, by the same serializer if it had one.  May switch.

    Arguments:
        exchange: where replies go.
        req: a message with ``reply_to``, and perhaps ``correlation_id``, among its properties.
        producer: None publishes on the channel of *req*.
        retry, retry_policy: see ``Producer.publish``.
        props: further arguments of ``publish``; they come first.

    Raises:
        KeyError: *req* wants no reply.
    """
    options = {
        "routing_key": req.properties["reply_to"],
        "correlation_id": req.properties.get("correlation_id"),
        "serializer": serializers.type_to_name.get(req.content_type),
        "content_encoding": req.content_encoding,
        **props,
    }
    producer = Producer(req.channel) if producer is None else producer
    return producer.publish(
        msg, exchange=exchange, retry=retry, retry_policy=retry_policy, **options
    )


def collect_replies(
    conn: Any, channel: Channel, queue: Any, *args: Any, **kwargs: Any
) -> Iterator[Any]:
    """Yield the bodies of the replies in *queue*.  May switch.

    Arguments:
        args, kwargs: see :func:`itermessages`; *no_ack* is True if it is not given.
    """
    no_ack = kwargs.setdefault("no_ack", True)
    has_received = False
    try:
        for body, message in itermessages(conn, channel, queue, *args, **kwargs):
            if not no_ack:
                message.ack()
            has_received = True
            yield body
    finally:
        if has_received:
            channel.after_reply_message_received(queue.name)
