"""The channels of every transport as the protocol ``greenconn.abc.Channel``.

The linters check this module with mypy; nothing here runs.  A class that no longer has what the protocol
asks for is an error in the line that names it, and so is an ``ignore`` that has become needless.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greenconn import abc
    from greenconn.transport import (
        SQS,
        beanstalk,
        couchdb,
        memory,
        mongodb,
        postgresql,
        redis,
        sqlite,
        virtual,
    )
    from greenconn.transport.amqp.channel import Channel as AmqpChannel
    from greenconn.transport.hooks.hosted import HostedChannel

    def channels(
        channel_of_amqp: AmqpChannel,
        channel_of_redis: redis.Channel,
        channel_of_sqlite: sqlite.Channel,
        channel_of_mongodb: mongodb.Channel,
        channel_of_postgresql: postgresql.Channel,
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
            channel_of_postgresql,
            channel_of_couchdb,
            channel_of_sqs,
            channel_of_beanstalk,
            channel_of_memory,
            polled,
            hosted,
        ]

    class Lacking:
        """No channel: nearly all methods are missing."""

        def close(self) -> None: ...

    def lacking(channel: Lacking) -> abc.Channel:
        return channel  # type: ignore[return-value]  # the protocol is really checked
