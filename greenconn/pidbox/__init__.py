"""Commands to processes, and their replies, over mailboxes (kombu.pidbox).

A :class:`Mailbox` names an application; each of its processes runs a :class:`Node` that listens.
``cast`` and ``abcast`` send a command, ``call`` and ``multi_call`` also collect the replies.
"""

from __future__ import annotations

from greenconn.pidbox.mailbox import REPLY_QUEUE_EXPIRES, Mailbox
from greenconn.pidbox.node import W_PIDBOX_IN_USE, Node

__all__ = ["REPLY_QUEUE_EXPIRES", "W_PIDBOX_IN_USE", "Mailbox", "Node"]
