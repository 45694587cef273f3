"""Brokers for Dramatiq, with one shared connection, on every transport of greenconn.

Set the broker in the module of the actors::

    import dramatiq
    from greenconn.contrib.dramatiq import GreenconnBroker

    dramatiq.set_broker(GreenconnBroker("amqp://user:password@host/vhost"))

Run the workers with ``dramatiq-gevent``.  ``send`` returns when the broker has the message.  Delayed
messages and retries wait at the broker: they occupy no place in a worker, and survive its end.  Messages
that failed permanently are moved to the dead-letter queue ``<queue>.XQ``, as with Dramatiq's own broker
for RabbitMQ.

A program that uses Dramatiq's ``RabbitmqBroker`` or ``RedisBroker`` changes the import only: the
classes of these names here take the same arguments::

    from greenconn.contrib.dramatiq import RabbitmqBroker

Under ``dramatiq-gevent``, Dramatiq's threads are greenlets, which share one connection for consuming and
one for publishing.  A program that only sends messages may use threads of any kind.
"""

from greenconn.contrib.dramatiq.broker import (
    GreenconnBroker,
    RabbitmqBroker,
    RedisBroker,
    dead_letter_name,
)

__all__ = ["GreenconnBroker", "RabbitmqBroker", "RedisBroker", "dead_letter_name"]
