"""Beanstalk: ``beanstalk://host:11300/``."""

from greenconn.transport.beanstalk.transport import Channel, Transport

__all__ = ["Channel", "Transport"]
