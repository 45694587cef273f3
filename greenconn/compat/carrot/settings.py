"""The broker in Django's settings."""

from __future__ import annotations

import importlib
import warnings
from typing import Any, Final

from greenconn.url import parse_url

__all__ = ["get_django_conninfo", "separate_settings"]

#: Argument -> setting, with BROKER_ before it (or AMQP_, which is older).
_SETTINGS: Final = {
    "hostname": "HOST",
    "userid": "USER",
    "password": "PASSWORD",
    "virtual_host": "VHOST",
    "port": "PORT",
    "ssl": "USE_SSL",
    "insist": "INSIST",
    "connect_timeout": "CONNECTION_TIMEOUT",
    "heartbeat": "HEARTBEAT",
    "login_method": "LOGIN_METHOD",
    "transport_options": "TRANSPORT_OPTIONS",
}
_BACKENDS: Final = ("CARROT_BACKEND", "BROKER_BACKEND", "BROKER_TRANSPORT")


def get_django_conninfo(settings: Any = None) -> dict[str, Any]:
    """Return the arguments of a connection that the settings have.

    ``BROKER_HOST``, ``BROKER_USER``, ``BROKER_PASSWORD``, ``BROKER_VHOST``, ``BROKER_PORT``, and
    ``BROKER_USE_SSL``, ``BROKER_INSIST``, ``BROKER_CONNECTION_TIMEOUT``, ``BROKER_HEARTBEAT``,
    ``BROKER_LOGIN_METHOD``, ``BROKER_TRANSPORT_OPTIONS``; each wins over its part of ``BROKER_URL``.
    The backend is ``CARROT_BACKEND``, ``BROKER_BACKEND`` or ``BROKER_TRANSPORT``.  With ``AMQP_`` in
    place of ``BROKER_`` they are older names, which warn.

    Arguments:
        settings: any object with such attributes; None is ``django.conf.settings``.

    Raises:
        ImportError: no settings are given and Django is not installed.
    """
    if settings is None:
        settings = importlib.import_module("django.conf").settings
    found = _of_url(getattr(settings, "BROKER_URL", None))
    found.setdefault("backend_cls", None)
    found.update(separate_settings(settings))
    return found


def separate_settings(settings: Any) -> dict[str, Any]:
    """Return the arguments of a connection for which *settings* have names of their own.

    Those of :func:`get_django_conninfo` without what is only in ``BROKER_URL``.
    """
    found: dict[str, Any] = {}
    backend = next(filter(None, (getattr(settings, name, None) for name in _BACKENDS)), None)
    if backend is not None:
        found["backend_cls"] = backend
    for argument, name in _SETTINGS.items():
        if hasattr(settings, f"BROKER_{name}"):
            found[argument] = getattr(settings, f"BROKER_{name}")
        elif hasattr(settings, f"AMQP_{name}"):
            found[argument] = getattr(settings, f"AMQP_{name}")
            _warn(f"AMQP_{name}", f"BROKER_{name}")
    if "hostname" not in found and hasattr(settings, "AMQP_SERVER"):
        found["hostname"] = settings.AMQP_SERVER
        _warn("AMQP_SERVER", "BROKER_HOST")
    return found


def _of_url(url: str | None) -> dict[str, Any]:
    if not url:
        return {}
    parts = parse_url(url)
    parts["backend_cls"] = parts.pop("transport", None)
    return {name: value for name, value in parts.items() if value is not None}


def _warn(old: str, new: str) -> None:
    warnings.warn(DeprecationWarning(f"the setting {old} has been renamed to {new}"), stacklevel=4)
