"""The consumers, which run in gunicorn's workers.  ``manage.py runconsumers`` runs them alone."""

import logging

from django.core.mail import send_mail

import greenconn
from greenconn.contrib.django import app
from subscribers.models import Subscriber
from subscribers.queues import WELCOME

logger = logging.getLogger(__name__)


@app.consumer(WELCOME, concurrency=5, retry=greenconn.Retry(tries=5))
def welcome(body: dict, message: greenconn.Message) -> None:
    """Send a mail to a new subscriber.

    A message is delivered again after a crash, so a subscriber who was welcomed is left out.  Only a
    process that is killed between the mail and its note of it sends the mail twice.
    """
    subscriber = Subscriber.objects.get(pk=body["id"])
    if subscriber.is_welcomed:
        return
    send_mail("Welcome", "You have subscribed to our newsletter.", None, [subscriber.address])
    subscriber.is_welcomed = True
    subscriber.save(update_fields=["is_welcomed"])
    logger.info("welcomed %s", subscriber.address)
