"""Settings of the project.  Its database is its broker."""

import os
from pathlib import Path

from greenconn.url import parse_url

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = os.environ.get("SECRET_KEY", "for trying it on one machine only")
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
DEBUG = False
ROOT_URLCONF = "shop.urls"
# It has neither sessions nor cookies, so it needs no protection from forged requests.
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
INSTALLED_APPS = ["greenconn.contrib.django", "shop"]

BROKER_URL = os.environ.get("GREENCONN_URL", "postgresql://shop:shop@localhost/shop")
_parts = parse_url(BROKER_URL)
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": _parts["hostname"],
        "PORT": _parts["port"],
        "USER": _parts["userid"],
        "PASSWORD": _parts["password"],
        "NAME": _parts["virtual_host"],
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

# Mails become files in this folder; in production they go to a mail server.
EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
EMAIL_FILE_PATH = BASE_DIR / "mails"
DEFAULT_FROM_EMAIL = "shop@example.org"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "INFO"},
}
