"""A messaging client for gevent programs, with kombu's API."""

from greenconn._version import __version__

__all__ = ["__version__"]
