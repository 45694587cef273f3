"""What the workers do beside their requests."""

from __future__ import annotations

from typing import Any

from django.conf import settings

import greenconn
from greenconn import Message, rpc
from greenconn.contrib.django import handler
from letters.models import Letter

OUTBOX = f"{settings.LETTERS_PREFIX}-outbox"
COUNT = f"{settings.LETTERS_PREFIX}-count"


@handler
def send(body: dict[str, Any], message: Message) -> None:
    """Send a letter.  It is there: the message was published when its transaction was committed."""
    letter = Letter.objects.get(pk=body["id"])
    letter.is_sent = True
    letter.save()


@handler
def count(body: str) -> int:
    """How many letters begin with *body*."""
    return Letter.objects.filter(text__startswith=body).count()


def start() -> None:
    """Begin to work, once in each worker process."""
    greenconn.spawn_consumer(OUTBOX, send, concurrency=5, on_error="requeue")
    rpc.spawn_server(COUNT, count, concurrency=5)
