"""The page for new subscribers."""

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_POST

from greenconn.contrib.outbox.django import publish
from subscribers.models import Subscriber
from subscribers.queues import WELCOME


@require_POST
def subscribe(request: HttpRequest) -> JsonResponse:
    """Accept an address.  After a 201 it gets a mail, whatever happens to this process."""
    subscriber = Subscriber(address=request.POST.get("address", ""))
    try:
        with transaction.atomic():
            subscriber.full_clean()
            subscriber.save()
            publish(WELCOME, {"id": subscriber.pk})
    except ValidationError as exc:
        return JsonResponse({"errors": exc.message_dict}, status=400)
    except IntegrityError:  # two requests for one address at the same time
        return JsonResponse({"errors": {"address": ["already subscribed"]}}, status=400)
    return JsonResponse({"id": subscriber.pk}, status=201)
