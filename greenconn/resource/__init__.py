"""Pools of connections, of channels, and of whatever else a subclass makes (``kombu.resource``)."""

from __future__ import annotations

from greenconn.resource.base import Resource
from greenconn.resource.channels import ChannelPool
from greenconn.resource.connections import ConnectionPool

__all__ = ["ChannelPool", "ConnectionPool", "Resource"]
