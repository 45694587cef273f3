"""The dead-letter exchanges of queues, as far as this program can know them.

A store knows them of each queue.  RabbitMQ tells them to no client of AMQP: they are known from the
arguments with which this program declared the queue, and from the management API, which also knows
those of a policy.  A message of a queue that has none, or whose exchange does not exist, must not be
rejected: the broker would drop it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from gevent import sleep
from gevent.lock import BoundedSemaphore

from greenconn.exceptions import NotFound, error_text
from greenconn.green.deadline import Deadline
from greenconn.log import message_fields

if TYPE_CHECKING:
    from greenconn.message import Message
    from greenconn.session.session import Session

logger = logging.getLogger("greenconn.worker")

#: Seconds for which an answer is taken to hold: policies and exchanges may change.
KEPT: Final = 30.0
#: Queues that are remembered: programs may generate names.
MOST_KNOWN: Final = 1000
#: Seconds for which the management API is not asked again after it did not answer.
UNANSWERED: Final = 300.0
#: Seconds for an answer of the management API.
MANAGEMENT_TIMEOUT: Final = 2.0
#: Seconds until the management API has the first statistics of a new queue, and a margin.
STATISTICS_INTERVAL: Final = 6.0
#: Seconds for an answer of the broker.
BROKER_TIMEOUT: Final = 10.0
_EXCHANGE: Final = "dead-letter-exchange"
_ROUTING_KEY: Final = "dead-letter-routing-key"


class DeadLetterExchanges:
    """The dead-letter exchanges of the queues that one connection consumes from."""

    def __init__(self, session: Session) -> None:
        self._session = session
        #: By the queue: whether it has one that exists, and until when that is believed.
        self._known: dict[str, tuple[bool, float]] = {}
        #: Many handlers may fail at once: one asks.
        self._lock = BoundedSemaphore(1)
        #: Before, the management API is not asked.
        self._asks_at = 0.0

    def has(self, queue: str, message: Message, arguments: Mapping[str, Any]) -> bool:
        """Return whether a rejected message goes to the dead-letter exchange of its queue.  May switch.

        Arguments:
            arguments: of the queue, as far as they are known.
        """
        ask = getattr(message.channel, "has_dead_letters", None)
        try:
            if ask is not None:
                key = message.delivery_info.get("routing_key") or ""
                return bool(ask(queue, key, message.headers))
            if self._session.broker.transport.driver_type != "amqp":
                return arguments.get(f"x-{_EXCHANGE}") is not None  # a transport of others
            if (known := self._recall(queue)) is None:
                with self._lock:
                    if (known := self._recall(queue)) is None:
                        known = self._find(queue, arguments)
                        if len(self._known) >= MOST_KNOWN:
                            self._known.clear()
                        self._known[queue] = known, monotonic() + KEPT
            return known
        except Exception as exc:
            logger.warning(
                "whether queue %r has a dead-letter exchange is not known: %s: %s",
                queue,
                type(exc).__name__,
                error_text(exc),
                extra=message_fields(message, queue=queue),
            )
            return False

    def _recall(self, queue: str) -> bool | None:
        """Return what is known of *queue*; None: nothing, any more."""
        found, until = self._known.get(queue, (False, 0.0))
        return found if monotonic() < until else None

    def _find(self, queue: str, arguments: Mapping[str, Any]) -> bool:
        """Return whether RabbitMQ has a dead-letter exchange for *queue*.  May switch."""
        exchange, key = arguments.get(f"x-{_EXCHANGE}"), arguments.get(f"x-{_ROUTING_KEY}")
        if exchange is None and self._asks_at <= monotonic():
            try:
                exchange, key = self._ask_management(queue)
            except Exception as exc:
                self._asks_at = monotonic() + UNANSWERED
                logger.info(
                    "whether a policy gives queue %r a dead-letter exchange is not known: %s",
                    queue,
                    error_text(exc),
                    extra={"queue": queue, "connection": self._session.broker.label},
                )
        return isinstance(exchange, str) and self._exists(queue, exchange, key)

    def _ask_management(self, queue: str) -> tuple[Any, Any]:
        """Return the dead-letter exchange and routing key of a queue; None: it has none.  May switch.

        Raises:
            Exception: the management API does not answer, or not so.
        """
        broker = self._session.broker
        manager = broker.transport.get_manager(timeout=MANAGEMENT_TIMEOUT)
        vhost, end = broker.info()["virtual_host"], monotonic() + STATISTICS_INTERVAL
        while True:
            found = manager.get_queue(vhost, queue)
            arguments = found["arguments"]
            if f"x-{_EXCHANGE}" in arguments:
                return arguments[f"x-{_EXCHANGE}"], arguments.get(f"x-{_ROUTING_KEY}")
            policy = found.get("effective_policy_definition")
            if policy is not None:
                policy = dict(policy)  # a list if it is empty, of older versions
                return policy.get(_EXCHANGE), policy.get(_ROUTING_KEY)
            # The queue is new: the policy comes with its first statistics.
            if monotonic() >= end:
                raise LookupError("the management API tells of no policies")
            sleep(0.25)

    def _exists(self, queue: str, exchange: str, key: Any) -> bool:
        """Return whether a dead letter of *queue* would not come back or be dropped.  May switch."""
        run, deadline = self._session.utility.run, Deadline(BROKER_TIMEOUT)
        try:
            if exchange:
                run(
                    lambda channel: channel.exchange_declare(exchange, "direct", passive=True),
                    deadline,  # of which the broker checks nothing but the name
                )
            elif isinstance(key, str) and key and key != queue:
                run(lambda channel: channel.queue_declare(key, passive=True), deadline)
            else:
                return False  # it would come back
        except NotFound:
            return False
        return True
