"""The consumer: ``python manage.py runconsumers``."""

import logging

from django.core.mail import send_mail

import greenconn
from greenconn.contrib.django import app
from shop.models import Invoice, Order
from shop.queues import INVOICES

logger = logging.getLogger(__name__)


@app.consumer(INVOICES, concurrency=5, transaction="default", retry=greenconn.Retry(tries=5))
def invoice(body: dict, message: greenconn.Message) -> None:
    """Write the invoice of an order, and mail it.

    This is a transaction, in which the message is acknowledged, too: there is one invoice for each
    order, whatever is killed.  The mail is sent last, and again only if the process dies before the
    commit.
    """
    order = Order.objects.get(pk=body["order"])
    invoice = Invoice.objects.create(order=order)
    send_mail("Invoice", f"Invoice {invoice.pk}: {order.item}", None, [order.address])
    logger.info("invoice %s for order %s", invoice.pk, order.pk)
