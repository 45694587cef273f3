"""Backends by their names (carrot.backends)."""

from __future__ import annotations

from typing import Any, Final

from greenconn.compat.carrot.backends.base import BaseBackend
from greenconn.transport import TRANSPORT_ALIASES, resolve_transport

__all__ = ["BACKEND_ALIASES", "DEFAULT_BACKEND", "get_backend_cls", "resolve_backend"]

DEFAULT_BACKEND: Final = "pyamqplib"

#: Names of backends -> modules of this package.
BACKEND_ALIASES: Final = {
    "amqp": "pyamqplib",
    "amqplib": "pyamqplib",
    "librabbitmq": "librabbitmq",
    "pika": "pikachu",
    "memory": "queue",
    "mem": "queue",
}
_MODULES: Final = {
    "pyamqplib": "amqp",
    "librabbitmq": "amqp",
    "pikachu": "amqp",
    "queue": "memory",
}

_made: dict[str, type[BaseBackend]] = {}


def resolve_backend(backend: str | None = None) -> tuple[str, str | None]:
    """Return the full name of a backend, and what stands after a ``!`` in *backend*."""
    name, _, extra_options = (backend or DEFAULT_BACKEND).partition("!")
    if "." not in name and ":" not in name:
        module = BACKEND_ALIASES.get(name.lower(), name)
        if module in _MODULES:
            name = f"carrot.backends.{module}"
    return name, extra_options or None


def get_backend_cls(backend: Any = None) -> Any:
    """Return the class of a backend.

    Arguments:
        backend: a class; carrot's name or module path of one; or an alias or class path of any
            transport of greenconn.  None is AMQP.

    Raises:
        KeyError: nothing has that name.
    """
    if backend is not None and not isinstance(backend, str):
        return backend
    name, _ = resolve_backend(backend)
    if name not in _made:
        _made[name] = _make(name)
    return _made[name]


def _make(name: str) -> type[BaseBackend]:
    module = name.removesuffix(".Backend").removeprefix("carrot.backends.")
    transport = _MODULES.get(module, name)
    if transport not in TRANSPORT_ALIASES:
        found = resolve_transport(transport)
        if isinstance(found, type) and issubclass(found, BaseBackend):
            return found
    return type("Backend", (BaseBackend,), {"transport": transport})
