"""The MongoDB transport."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import pymongo
from pymongo import errors

from greenconn.broker.channel import StoreChannel
from greenconn.broker.link import StoreLink
from greenconn.broker.options import StoreOptions
from greenconn.broker.transport import StoreTransport
from greenconn.exceptions import (
    ChannelError,
    ConnectionError,
    InconsistencyError,
    RecoverableConnectionError,
)
from greenconn.transport.mongodb.client import address_of
from greenconn.transport.mongodb.options import MongoOptions
from greenconn.transport.mongodb.store import MongoStore
from greenconn.url import mask_secrets


class Channel(StoreChannel[StoreLink]):
    """A channel to a database."""

    supported_arguments = replace(
        StoreChannel.supported_arguments,
        queue=StoreChannel.supported_arguments.queue | {"x-expires"},
    )


class Transport(StoreTransport):
    """``mongodb://``: kombu's collections.

    ``transport_options`` are those of :class:`~greenconn.transport.mongodb.options.MongoOptions`;
    what stands behind the question mark of the URL is pymongo's.
    """

    Channel = Channel
    Options: ClassVar[type[StoreOptions]] = MongoOptions
    driver_type = "mongodb"
    driver_name = "pymongo"
    default_port = 27017
    inner_schemes = frozenset({"srv"})
    can_parse_url = True
    connection_errors = (
        ConnectionError,
        InconsistencyError,
        OSError,
        errors.ConnectionFailure,
    )
    channel_errors = (ChannelError, errors.OperationFailure)
    recoverable_connection_errors = (
        RecoverableConnectionError,
        OSError,
        errors.ConnectionFailure,
    )

    def driver_version(self) -> str:
        return str(pymongo.version)

    def make_store(self, wake: Callable[[str | None], None]) -> MongoStore:
        return MongoStore(self.client, wake, self.options, self.kept(set))

    def place(self) -> str:
        """Servers and database."""
        address = address_of(self.client, self.options)
        return f"{mask_secrets(address.host)} {address.database}"

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """Mask the password of a URL, which may name many servers."""
        if not uri:
            return "mongodb://"
        if uri.startswith("srv://"):
            uri = f"mongodb+{uri}"
        if include_password:
            return uri
        return mask_secrets(uri, mask)
