"""The transport options that all transports over a store have."""

from __future__ import annotations

from greenconn.checks import check_count, check_seconds, check_type, invalid
from greenconn.records import Record

__all__ = ["StoreOptions"]


class StoreOptions(Record):
    """The options of a connection to any store."""

    lease: float = 30.0
    """Seconds without a sign of life after which what a consumer holds is given back.  A living one
    renews it every third of it, however long its handlers run."""

    delivery_limit: int | None = None
    """Deliveries of one message after which it is a dead letter; None: no limit.  A queue's
    ``x-delivery-limit`` wins."""

    dead_letter_queue: str | None = None
    """Queue for dead letters of queues that have no ``x-dead-letter-exchange``; None drops them."""

    deadletter_queue: str | None = None
    """Queue for messages that no binding matches; None drops them (kombu's)."""

    confirm_publish: bool = False
    """Accepted as for AMQP: every publish waits until the message is stored anyway."""

    reply_timeout: float | None = 30.0
    """Seconds that a call to the store may take, where the caller gave no timeout; None waits."""

    confirm_timeout: float | None = None
    """Seconds that a publish waits until its message is stored, where the call gives no time; None: as
    long as the store answers within *reply_timeout*."""

    max_message_size: int = 512 * 1024 * 1024
    """Bytes of a body."""

    def __post_init__(self) -> None:
        check_type(self, str, "dead_letter_queue", "deadletter_queue", optional=True)
        check_type(self, bool, "confirm_publish")
        check_seconds(self, "lease", optional=False)
        check_seconds(self, "reply_timeout", "confirm_timeout")
        check_count(self, "delivery_limit", least=1)
        check_count(self, "max_message_size", least=1, optional=False)
        if not self.lease:
            raise invalid(self, "lease", "a number of seconds above 0")
