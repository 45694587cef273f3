"""Publishing that returns when the broker has the message."""

from greenconn.publishing.calls import publish, publish_many

__all__ = ["publish", "publish_many"]
