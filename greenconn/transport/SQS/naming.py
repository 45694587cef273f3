"""Names as AWS takes them: letters, digits, hyphens and underscores."""

from __future__ import annotations

import string
from typing import Final

__all__ = ["FIFO", "aws_name"]

#: The end of the names of FIFO queues and topics.
FIFO: Final = ".fifo"
#: What AWS does not take -> what stands for it: kombu's table.
_TABLE: Final = {ord(each): "_" for each in string.punctuation if each not in "-_."} | {46: "-"}


def aws_name(name: str) -> str:
    """Return the name at AWS of a queue or exchange (kombu's ``entity_name``).

    >>> aws_name("celery@host.example.pidbox"), aws_name("orders.eu.fifo")
    ('celery_host-example-pidbox', 'orders-eu.fifo')
    """
    if name.endswith(FIFO):
        return name.removesuffix(FIFO).translate(_TABLE) + FIFO
    return name.translate(_TABLE)
