"""The consumers of the project, which run in gunicorn's workers and by ``manage.py runconsumers``."""

from __future__ import annotations

from typing import Any

from django.conf import settings

from greenconn import Message
from greenconn.contrib.django import app, handler
from letters.models import Letter

OUTBOX = f"{settings.LETTERS_PREFIX}-outbox"
COUNT = f"{settings.LETTERS_PREFIX}-count"


@app.consumer(OUTBOX, concurrency=5, on_error="requeue")
def send(body: dict[str, Any], message: Message) -> None:
    """Send a letter.  It is there: the message was published when its transaction was committed."""
    letter = Letter.objects.get(pk=body["id"])
    letter.is_sent = True
    letter.save()


@app.rpc(COUNT, concurrency=5)
@handler  # as it is written without an application
def count(body: str) -> int:
    """How many letters begin with *body*."""
    return Letter.objects.filter(text__startswith=body).count()
