"""Producers and consumers."""

from greenconn.entity import Exchange, Queue
from greenconn.messaging.consumer import Consumer
from greenconn.messaging.producer import Producer
from greenconn.transport.base import Factories

__all__ = ["Consumer", "Exchange", "Producer", "Queue"]

Factories.Producer = Producer
Factories.Consumer = Consumer
