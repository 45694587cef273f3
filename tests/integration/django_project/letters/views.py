"""The pages."""

from __future__ import annotations

from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, JsonResponse

from greenconn import rpc
from greenconn.compat.carrot.connection import DjangoBrokerConnection
from greenconn.compat.carrot.messaging import Consumer, Publisher
from greenconn.contrib.django import connection, publish_on_commit
from letters.consumers import COUNT, OUTBOX
from letters.models import Letter


def letters(request: HttpRequest) -> JsonResponse:
    """Take a letter, or list all."""
    if request.method != "POST":
        sent = Letter.objects.filter(is_sent=True)
        return JsonResponse({"sent": sorted(sent.values_list("text", flat=True))})
    text = request.POST["text"]
    try:
        with transaction.atomic():
            letter = Letter.objects.create(text=text)
            publish_on_commit(OUTBOX, {"id": letter.pk})
            if "mistake" in text:
                raise ValueError("rolled back")
    except ValueError as exc:
        return JsonResponse({"error": str(exc)}, status=400)
    return JsonResponse({"letters": rpc.call(COUNT, "", timeout=10)})


def carrot(request: HttpRequest) -> JsonResponse:
    """Send a message and fetch it, as carrot's programs do."""
    name = f"{settings.LETTERS_PREFIX}-carrot"
    with DjangoBrokerConnection() as conn:
        consumer = Consumer(conn, queue=name, exchange=name, routing_key="x")
        publisher = Publisher(conn, exchange=name, routing_key="x")
        publisher.send({"text": request.GET["text"]})
        message = None
        while message is None:
            message = consumer.fetch()
        message.ack()
        host = conn.host
        publisher.close()
        consumer.close()
    return JsonResponse({"host": host, **message.payload})


def kombu(request: HttpRequest) -> JsonResponse:
    """Send a message and fetch it over a connection of the settings, as kombu's programs do."""
    with connection(connect_timeout=8) as conn:
        with conn.SimpleBuffer(f"{settings.LETTERS_PREFIX}-kombu") as queue:
            queue.put(request.GET["text"])
            message = queue.get(timeout=30)
        return JsonResponse({"url": conn.as_uri(), "text": message.payload})
