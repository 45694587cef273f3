"""The page for orders."""

from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_POST

import greenconn
from shop.models import Order
from shop.queues import INVOICES


@require_POST
def accept(request: HttpRequest) -> JsonResponse:
    """Accept a basket.  After a 201 each item gets an invoice; after an error none does."""
    address = request.POST.get("address", "")
    try:
        with transaction.atomic():
            orders = [place(item, address) for item in request.POST.getlist("item")]
    except ValidationError as exc:
        return JsonResponse({"errors": exc.message_dict}, status=400)
    return JsonResponse({"orders": orders}, status=201)


def place(item: str, address: str) -> int:
    """Write an order and the message about it, in the transaction that is open."""
    order = Order(item=item, address=address)
    order.full_clean()
    order.save()
    greenconn.publish(INVOICES, {"order": order.pk}, transaction="default")
    return order.pk
