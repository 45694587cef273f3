"""Settings of the project."""

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = os.environ.get("SECRET_KEY", "for trying it on one machine only")
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
DEBUG = False
ROOT_URLCONF = "newsletter.urls"
# It has neither sessions nor cookies, so it needs no protection from forged requests.
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
INSTALLED_APPS = ["greenconn.contrib.django", "greenconn.contrib.outbox.django", "subscribers"]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": BASE_DIR / "db.sqlite3",
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

BROKER_URL = os.environ.get("GREENCONN_URL", "amqp://guest:guest@localhost//")

# Mails become files in this folder; in production they go to a mail server.
EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
EMAIL_FILE_PATH = BASE_DIR / "mails"
DEFAULT_FROM_EMAIL = "newsletter@example.org"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "INFO"},
}
