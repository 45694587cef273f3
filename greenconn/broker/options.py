"""The transport options that all transports over a store have."""

from __future__ import annotations

from greenconn.checks import check_count, check_seconds, check_type, invalid
from greenconn.records import Record


class StoreOptions(Record):
    """The options of a connection to any store."""

    lease: float = 30.0
    """Seconds after which the messages of a consumer that shows no sign of life are requeued.  A
    living consumer renews the lease every third of that time, however long its handlers run."""

    delivery_limit: int | None = None
    """Maximum number of deliveries of a message, after which it is dead-lettered; None is no limit.
    A queue's ``x-delivery-limit`` takes precedence."""

    dead_letter_queue: str | None = None
    """Queue for dead letters of queues without ``x-dead-letter-exchange``; None drops them."""

    deadletter_queue: str | None = None
    """Queue for messages that no binding matches; None drops them (kombu's)."""

    confirm_publish: bool = False
    """Accepted as for AMQP and ignored: every publish waits until the message is stored."""

    reply_timeout: float | None = 30.0
    """Seconds for a call of the store, if the caller gives no timeout; None is no limit."""

    confirm_timeout: float | None = None
    """Seconds that a publish waits until its message is stored, if the call gives no timeout; None
    is as long as the store replies within *reply_timeout*."""

    max_message_size: int = 512 * 1024 * 1024
    """Maximum bytes of a body."""

    def __post_init__(self) -> None:
        check_type(self, str, "dead_letter_queue", "deadletter_queue", optional=True)
        check_type(self, bool, "confirm_publish")
        check_seconds(self, "lease", optional=False)
        check_seconds(self, "reply_timeout", "confirm_timeout")
        check_count(self, "delivery_limit", least=1)
        check_count(self, "max_message_size", least=1, optional=False)
        if not self.lease:
            raise invalid(self, "lease", "a number of seconds above 0")
