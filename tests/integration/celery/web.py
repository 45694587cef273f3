"""A web application of one view that sends a task: for servers that answer in native threads.

``python -m tests.integration.celery.web runserver ...`` is Django's command line.
"""

from __future__ import annotations

import os
import signal
import sys

import django
from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from tests.integration.celery.app import add


def send(request: HttpRequest) -> JsonResponse:
    """Send a task, and tell how many descriptors are open."""
    sent = add.delay(1, 2)
    return JsonResponse({"id": sent.id, "descriptors": len(os.listdir("/proc/self/fd"))})


urlpatterns = [path("send", send)]
if not settings.configured:
    settings.configure(ROOT_URLCONF=__name__, SECRET_KEY="of a test", ALLOWED_HOSTS=["*"])
    django.setup()
application = get_wsgi_application()

if __name__ == "__main__":
    # A shell that starts something in the background has it ignore SIGINT, and its children with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    execute_from_command_line(sys.argv)
