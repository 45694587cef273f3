"""A project with one app, and a broker."""

from __future__ import annotations

import json
import os
from pathlib import Path

import django

from greenconn.url import parse_url

SECRET_KEY = "of a test"
ALLOWED_HOSTS = ["*"]
DEBUG = False
ROOT_URLCONF = "urls"
INSTALLED_APPS = ["greenconn.contrib.django", "greenconn.contrib.outbox.django", "letters"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["LETTERS_DATABASE"],
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
if os.environ["LETTERS_DATABASE"].startswith("postgresql:"):
    _place = parse_url(os.environ["LETTERS_DATABASE"])
    DATABASES["default"] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _place["virtual_host"],
        "USER": _place["userid"],
        "HOST": _place["hostname"],
        "PORT": _place["port"],
    }
#: Names of the project's queues begin so.
LETTERS_PREFIX = os.environ["LETTERS_PREFIX"]

#: Options of the backend of the project's tasks.
if tasks := os.environ.get("LETTERS_TASKS"):
    if django.VERSION < (6, 0):
        INSTALLED_APPS.append("django_tasks")
    TASKS = {
        "default": {
            "BACKEND": "greenconn.contrib.django.tasks.Backend",
            "OPTIONS": {"prefix": f"{LETTERS_PREFIX}-", "results": "default", **json.loads(tasks)},
        }
    }
    CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
            "LOCATION": str(Path(os.environ["LETTERS_DATABASE"]).with_name("cache")),
        }
    }

if os.environ["LETTERS_SETTINGS"] == "url":
    BROKER_URL = os.environ["LETTERS_BROKER"]
else:
    _parts = parse_url(os.environ["LETTERS_BROKER"])
    BROKER_HOST = _parts["hostname"]
    BROKER_PORT = _parts["port"]
    BROKER_USER = _parts["userid"]
    BROKER_PASSWORD = _parts["password"]
    BROKER_VHOST = _parts["virtual_host"]
    BROKER_CONNECTION_TIMEOUT = 9
    BROKER_BACKEND = "amqplib"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"django.request": {"handlers": ["console"], "level": "ERROR"}},
}
