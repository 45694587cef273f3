"""Programs that publish to one exchange, while others bind queues to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gevent

from greenconn import Connection, Exchange, Queue
from greenconn.green.deadline import Deadline
from tests.integration.contract import SOON

NEWS = Exchange("news", "topic")
#: Messages that :func:`published_amid_bindings` publishes, and those from one binding to the next.
MANY, EACH = 600, 200


class Program:
    """A program with a connection of its own, and an exchange."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.channel = connection.default_channel
        self.channel.exchange_declare("news", "topic", durable=True)
        self.producer = connection.Producer()

    def queue(self, name: str, key: str = "#", **options: Any) -> Queue:
        """A declared queue that is bound."""
        queue = Queue(name, NEWS, key, **options)(self.channel)
        queue.declare()
        return queue

    def publish(self, body: Any = "x", **options: Any) -> None:
        """Publish to the exchange."""
        with gevent.Timeout(SOON):
            self.producer.publish(body, **{"exchange": "news", "routing_key": "a.b", **options})

    def bodies(self, queue: str) -> list[Any]:
        """The bodies that wait in a queue, which is empty then."""
        found: list[Any] = []
        while (message := self.channel.basic_get(queue, no_ack=True)) is not None:
            found.append(message.payload)
        return found

    def publish_amid_bindings(self, bind: Callable[[int], None], pause: float) -> list[str]:
        """Publish without waiting, and bind a queue more amid each part; what was published.

        Arguments:
            bind: gets the number of the part.
            pause: seconds after which some messages are known to be late.
        """
        begin, results = self.channel.begin_publish, []
        bodies = [str(number) for number in range(MANY)]
        for number, body in enumerate(bodies):
            if number % EACH == 50:
                bind(number // EACH)
            if number % 10 == 0:
                gevent.sleep(pause)
            message = self.channel.prepare_message(body)
            results.append(begin(message, "news", "a.b", False, False, None))
        for each in results:
            each.wait(Deadline(SOON))
        return bodies

    def check_order(self, bodies: Sequence[str], later: Sequence[str]) -> None:
        """See that the queues that were bound later have all that was published since, in order."""
        for place, name in enumerate(later):
            got = self.bodies(name)
            # What was under way when it was bound may be there, too.
            assert got == bodies[-len(got) :]
            assert len(got) >= MANY - EACH * place - 50
