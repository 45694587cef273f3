"""Publishing of messages that returns after the broker's confirm."""

from greenconn.publishing.calls import publish, publish_many

__all__ = ["publish", "publish_many"]
