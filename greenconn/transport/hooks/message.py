"""A message from the envelope that a hook returned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenconn.broker.port import Claimed, Settlement
from greenconn.exceptions import DecodeError
from greenconn.formats import decode_error
from greenconn.jsoncodec import dumps
from greenconn.message import Message as BaseMessage
from greenconn.transport.hooks.qos import keeps_only_here
from greenconn.transport.virtual.envelope import WHAT, checked
from greenconn.transport.virtual.publishing import Envelope

if TYPE_CHECKING:
    from greenconn.transport.virtual.consumer import Consumer


class Message(BaseMessage):
    """A message out of its envelope.

    Arguments:
        payload: the envelope.
        channel: decodes the body.
        queue: where it was taken from, if known: it is given back there.

    Attributes:
        consumer: who gets it; None for ``basic_get``.
        is_noted: the channel's ``QoS`` has noted it, and gets its outcome.
    """

    __slots__ = ("_raw", "consumer", "is_noted", "queue")

    #: Whether its channel holds it until it is settled.
    is_held = True

    def __init__(
        self, payload: Envelope, channel: Any = None, queue: str | None = None, **kwargs: Any
    ) -> None:
        self._raw = payload
        self.queue = queue
        self.consumer: Consumer | None = None
        self.is_noted = False
        error: DecodeError | None = None
        try:
            properties, headers, content_type, content_encoding, body = checked(payload)
        except Exception as exc:
            super().__init__(body=payload, channel=channel, **kwargs)
            self._note(decode_error(exc, WHAT))
            return
        try:
            if body is not None and not isinstance(body, (str, bytes)):
                body = dumps(body)  # its publisher did not serialize it
            elif body and channel is not None:
                body = channel.decode_body(body, properties.get("body_encoding"))
        except Exception as exc:
            error = decode_error(exc, WHAT)
        tag = properties.get("delivery_tag")
        super().__init__(
            body=body,
            channel=channel,
            delivery_tag=tag if isinstance(tag, (str, int)) else None,
            content_type=content_type,
            content_encoding=content_encoding,
            headers=headers,
            properties=properties,
            delivery_info={
                **(properties.get("delivery_info") or {}),
                "redelivered": bool(payload.get("redelivered")),
            },
            postencode="utf-8",
            **kwargs,
        )
        if error is not None:
            self._note(error)

    def _note(self, error: DecodeError) -> None:
        """Have decoding raise *error*, as the message cannot be read."""
        self.errors.append((DecodeError, error, None))

    @property
    def claimed(self) -> Claimed:
        """The claim of the store."""
        return Claimed(self.queue or "", None, self)

    @property
    def link(self) -> Any:
        """The link that took it out."""
        return self.channel.connection

    @property
    def is_gone_from_broker(self) -> bool:
        """Whether we must requeue it, since neither the broker nor a ``QoS`` of its own does."""
        channel = self.channel
        return bool(channel.do_restore) and (not self.is_noted or keeps_only_here(channel.qos))

    def settle(self, settlement: Settlement) -> None:
        """Tell the ``QoS`` what becomes of it; one that it does not know is put back.  May switch."""
        channel = self.channel
        if not self.is_noted:
            if settlement is Settlement.REQUEUE:
                channel._restore_at_beginning(self)
        elif settlement is Settlement.ACK:
            channel.qos.ack(self.delivery_tag)
        else:
            channel.qos.reject(self.delivery_tag, requeue=settlement is Settlement.REQUEUE)
        if channel.asks_qos:
            channel.serve()

    def serializable(self) -> Envelope:
        """Return the envelope with which it can be put back."""
        if self.errors:
            return dict(self._raw) if isinstance(self._raw, dict) else {"body": self._raw}
        properties = self.properties
        body = self.body
        if body is not None:
            body, _ = self.channel.encode_body(body, properties.get("body_encoding"))
        # The body was decompressed on its way in.
        headers = {name: each for name, each in self.headers.items() if name != "compression"}
        return {
            "body": body,
            "properties": properties,
            "content-type": self.content_type,
            "content-encoding": self.content_encoding,
            "headers": headers,
        }
