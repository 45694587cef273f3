"""The transport options of beanstalk."""

from __future__ import annotations

from greenconn.broker.options import StoreOptions
from greenconn.checks import check_type

__all__ = ["BeanstalkOptions"]


class BeanstalkOptions(StoreOptions):
    """The options of a connection to beanstalkd; *lease* is what beanstalk calls the time to run."""

    bury_rejected: bool = True
    """Whether a message that is rejected, and has no dead-letter exchange, is buried in its tube,
    from where ``channel.kick`` recovers it.  With False it is deleted, as with RabbitMQ."""

    def __post_init__(self) -> None:
        StoreOptions.__post_init__(self)
        check_type(self, bool, "bury_rejected")
