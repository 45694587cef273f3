"""The classes of every transport as the protocols of ``greenconn.abc``.

The linters check this module with mypy; nothing here runs.  A class that no longer has what a protocol
asks for is an error in the line that names it, and so is an ``ignore`` that has become needless.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greenconn import abc
    from greenconn.broker.claiming import StoreDelivery
    from greenconn.broker.link import StoreLink
    from greenconn.connection import BrokerConnection, Connection
    from greenconn.session.session import Session
    from greenconn.transport import SQS, beanstalk, couchdb, memory, mongodb, redis, sqlite, virtual
    from greenconn.transport.amqp.channel import Channel as AmqpChannel
    from greenconn.transport.amqp.link import AmqpLink
    from greenconn.transport.amqp.message import Delivery as AmqpDelivery
    from greenconn.transport.amqp.transport import Transport as AmqpTransport
    from greenconn.transport.hooks.hosted import HostedChannel, HostedLink, HostedTransport
    from greenconn.transport.hooks.link import HookLink
    from greenconn.transport.memory.link import MemoryLink
    from greenconn.transport.memory.message import Message as MemoryDelivery
    from greenconn.transport.redis.envelope import Delivery as RedisDelivery
    from greenconn.transport.redis.link import RedisLink

    def channels(
        channel_of_amqp: AmqpChannel,
        channel_of_redis: redis.Channel,
        channel_of_sqlite: sqlite.Channel,
        channel_of_mongodb: mongodb.Channel,
        channel_of_couchdb: couchdb.Channel,
        channel_of_sqs: SQS.Channel,
        channel_of_beanstalk: beanstalk.Channel,
        channel_of_memory: memory.Channel,
        polled: virtual.Channel,
        hosted: HostedChannel,
    ) -> list[abc.Channel]:
        return [
            channel_of_amqp,
            channel_of_redis,
            channel_of_sqlite,
            channel_of_mongodb,
            channel_of_couchdb,
            channel_of_sqs,
            channel_of_beanstalk,
            channel_of_memory,
            polled,
            hosted,
        ]

    def links(
        link_of_amqp: AmqpLink,
        link_of_redis: RedisLink,
        link_of_stores: StoreLink,
        link_of_memory: MemoryLink,
        polled: HookLink,
        hosted: HostedLink,
    ) -> list[abc.Link]:
        return [link_of_amqp, link_of_redis, link_of_stores, link_of_memory, polled, hosted]

    def transports(
        amqp: AmqpTransport,
        of_redis: redis.Transport,
        of_sqlite: sqlite.Transport,
        of_mongodb: mongodb.Transport,
        of_couchdb: couchdb.Transport,
        of_sqs: SQS.Transport,
        of_beanstalk: beanstalk.Transport,
        of_memory: memory.Transport,
        polled: virtual.Transport,
        hosted: HostedTransport,
    ) -> list[abc.Transport[Any]]:
        return [
            amqp,
            of_redis,
            of_sqlite,
            of_mongodb,
            of_couchdb,
            of_sqs,
            of_beanstalk,
            of_memory,
            polled,
            hosted,
        ]

    def messages(
        of_amqp: AmqpDelivery,
        of_redis: RedisDelivery,
        of_stores: StoreDelivery,
        of_memory: MemoryDelivery,
        of_polled: virtual.Message,
    ) -> list[abc.Message]:
        return [of_amqp, of_redis, of_stores, of_memory, of_polled]

    def connections(connection: Connection, old: BrokerConnection) -> list[abc.Connection]:
        return [connection, old]

    def sessions(session: Session) -> list[abc.Session]:
        return [session]

    class Lacking:
        """No channel: nearly all methods are missing."""

        def close(self) -> None: ...

    def lacking(channel: Lacking) -> abc.Channel:
        return channel  # type: ignore[return-value]  # the protocol is really checked
