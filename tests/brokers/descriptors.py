"""The limit of open descriptors."""

from __future__ import annotations

import resource


def raise_limit() -> None:
    """Raise the soft limit to the hard one; brokers and tests inherit it.

    At the usual 1024 RabbitMQ takes 832 connections, and the next one hangs.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):  # "unlimited" is refused on some systems
        pass
