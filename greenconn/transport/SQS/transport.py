"""The transport over Amazon SQS."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar

import botocore
from botocore.exceptions import BotoCoreError

from greenconn.broker.transport import StoreTransport
from greenconn.green import fork
from greenconn.options import known_options
from greenconn.transport.SQS import channel
from greenconn.transport.SQS.account import Accounts
from greenconn.transport.SQS.exceptions import ServiceBusy
from greenconn.transport.SQS.options import HYPHENATED, SQSOptions
from greenconn.transport.SQS.store import SqsStore

__all__ = ["Transport"]

logger = logging.getLogger("greenconn.transport.SQS")


class Transport(StoreTransport):
    """``sqs://``: kombu's names and messages, requests of ten, leases that are renewed.

    ``transport_options`` are those of :class:`~greenconn.transport.SQS.options.SQSOptions`.
    """

    Channel = channel.Channel
    Publisher = channel.Publisher
    Options: ClassVar[type[SQSOptions]] = SQSOptions
    driver_type = "sqs"
    driver_name = "sqs"
    default_port = None
    wait_time_seconds = 0
    connection_errors = (*StoreTransport.connection_errors, BotoCoreError)
    channel_errors = (*StoreTransport.channel_errors, BotoCoreError, ServiceBusy)

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self._accounts: Accounts | None = None
        self._sqs_options: SQSOptions | None = None

    def driver_version(self) -> str:
        return str(botocore.__version__)

    @property
    def options(self) -> SQSOptions:
        """The transport options, read when they are first needed; kombu's spelling is taken too.

        Raises:
            ValueError: one has a value that cannot be.
        """
        if self._sqs_options is None:
            self._sqs_options = self._read_options()
        return self._sqs_options

    def _read_options(self) -> SQSOptions:
        given = {
            HYPHENATED.get(name, name): value
            for name, value in (self.client.transport_options or {}).items()
        }
        return known_options(SQSOptions, given, self.client.as_uri(), logger)

    def make_store(self, wake: Callable[[str | None], None]) -> SqsStore:
        """Return the store of one link; accounts outlive it."""
        if self._accounts is None:
            self._accounts = Accounts(self.client, self.options)
            fork.register(self._accounts)
        return SqsStore(self.client, wake, self._accounts, self.options)

    def place(self) -> str:
        """Return a key that is equal for connections to the same queues."""
        client, options = self.client, self.options
        where = options.endpoint_url or f"{client.hostname}:{client.port}"
        return f"{where} {options.region} {client.userid} {options.queue_name_prefix}"

    @property
    def default_connection_params(self) -> dict[str, Any]:
        """No host: then it is AWS."""
        return {"hostname": None}
