"""Producers and consumers."""

from greenconn.entity import Exchange, Queue
from greenconn.messaging.consumer import Consumer
from greenconn.messaging.producer import DEFAULT_BATCH_SIZE, Producer
from greenconn.transport.base import Factories

__all__ = ["DEFAULT_BATCH_SIZE", "Consumer", "Exchange", "Producer", "Queue"]

Factories.Producer = Producer
Factories.Consumer = Consumer
