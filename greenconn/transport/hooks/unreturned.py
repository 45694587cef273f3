"""Messages that were taken out through hooks, and that no life of a connection has put back."""

from __future__ import annotations

import logging
import os
import weakref

from greenconn.broker.handover import Handover
from greenconn.transport.hooks.qos import dump_messages

__all__ = ["UnreturnedMessages"]

logger = logging.getLogger("greenconn.transport.virtual")


class UnreturnedMessages:
    """Dumps what is left of one connection when it is forgotten, or the program ends.

    Arguments:
        handover: has what former lives have left.
    """

    __slots__ = ("__weakref__",)

    def __init__(self, handover: Handover) -> None:
        weakref.finalize(self, _dump, os.getpid(), handover)


def _dump(process: int, handover: Handover) -> None:
    if os.getpid() != process:
        return  # the parent of this process has them
    messages = [each.handle for each in handover.left() if each.handle.is_gone_from_broker]
    if messages:
        logger.error("%d message(s) were not requeued before the end", len(messages))
        dump_messages(messages)
