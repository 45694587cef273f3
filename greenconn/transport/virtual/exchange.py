"""Kombu's path of the types of exchanges, which stand in :mod:`greenconn.broker.exchanges`."""

from greenconn.broker.exchanges import (
    STANDARD_EXCHANGE_TYPES,
    DirectExchange,
    ExchangeType,
    FanoutExchange,
    HeadersExchange,
    TopicExchange,
)

__all__ = [
    "STANDARD_EXCHANGE_TYPES",
    "DirectExchange",
    "ExchangeType",
    "FanoutExchange",
    "HeadersExchange",
    "TopicExchange",
]
