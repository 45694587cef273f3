"""kombu in the same storm, in a process that gevent has patched, as its users have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gevent
import kombu.connection
import kombu.entity
from kombu import pools
from kombu.mixins import ConsumerMixin

from tests.quality.faults.client import POLICY, STOP_TIMEOUT, Handle, Way, receive
from tests.quality.faults.targets.base import Place, Role, Target

#: Seconds after which a confirm does not come any more: the publish is tried again then.
CONFIRM_TIMEOUT = 10.0


class Kombu:
    """kombu over py-amqp or redis-py, with what its documentation advises.

    Confirms and retries for publishers, which share a pool of producers; a ``ConsumerMixin`` with a
    connection of its own for each queue.
    """

    name = "kombu"

    def __init__(self, target: Target, is_calm: bool) -> None:
        self._target = target
        self._connection = self._connected()

    def _connected(self) -> Any:
        options: dict[str, Any] = {"confirm_publish": True}
        if self._target.transport == "redis":
            # Else what a lost connection held would come again after an hour.
            options = {"visibility_timeout": 5, "socket_timeout": 5, "health_check_interval": 2}
        return kombu.connection.Connection(
            self._target.url, heartbeat=self._target.heartbeat or 0, transport_options=options
        )

    def ways(self, place: Place) -> list[Way]:
        """By producers of a pool."""
        return [Way(self._produce)]

    def _produce(self, name: str, bodies: list[str]) -> Mapping[int, BaseException]:
        failed: dict[int, BaseException] = {}
        waits = {"confirm_timeout": CONFIRM_TIMEOUT} if self._target.transport == "amqp" else {}
        for position, body in enumerate(bodies):
            try:
                with pools.producers[self._connection].acquire(block=True, timeout=60) as producer:
                    producer.publish(
                        body, routing_key=name, retry=True, retry_policy=POLICY, **waits
                    )
            except Exception as exc:
                failed[position] = exc
        return failed

    def receiver(self, number: int, place: Place, handle: Handle) -> Mixed:
        """A ``ConsumerMixin``."""
        return Mixed(self._connected(), place, handle)

    def slots(self) -> int:
        """Producers and connections of pools that are in use."""
        return sum(
            len(pool._dirty)
            for group in (pools.producers, pools.connections)
            for pool in group.values()
        )

    def close(self) -> None:
        """Close all."""
        pools.reset()
        self._connection.close()


class Mixed(ConsumerMixin):
    """A ``ConsumerMixin`` that consumes from one queue."""

    def __init__(self, connection: Any, place: Place, handle: Handle) -> None:
        self.connection = connection
        queue = place.queue
        self._no_ack = place.role is Role.UNACKED
        self._queue = kombu.entity.Queue(queue.name, queue_arguments=queue.queue_arguments)
        self._handle = handle

    def get_consumers(self, Consumer: Callable[..., Any], channel: Any) -> list[Any]:  # noqa: N803
        """One consumer."""
        count = None if self._no_ack else 20
        receive = [self._receive]
        return [
            Consumer([self._queue], no_ack=self._no_ack, callbacks=receive, prefetch_count=count)
        ]

    def _receive(self, body: object, message: Any) -> None:
        receive(self._handle, self._queue.name, self._no_ack, body, message)

    def begin(self) -> None:
        """Consume."""
        self._greenlet: gevent.Greenlet[..., None] = gevent.spawn(self.run)

    def end(self) -> None:
        """Stop."""
        self.should_stop = True
        self._greenlet.join(STOP_TIMEOUT)
        is_stuck = not self._greenlet.ready()
        self._greenlet.kill()
        self.connection.close()
        assert not is_stuck, f"the consumer of {self._queue} does not stop"

    def trouble(self) -> str | None:
        """What has ended it."""
        return repr(self._greenlet.exception) if self._greenlet.ready() else None
