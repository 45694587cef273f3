"""Import of objects by name (kombu.utils.imports)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["MissingExtra", "native", "needed", "symbol_by_name"]


class MissingExtra(ImportError):
    """A library that a part of this package needs is not installed."""


def needed(module: str, package: str, extra: str) -> Any:
    """Import a module that is, or stands on, a package of an extra.

    Arguments:
        module: what to import.
        package: the top module that may be missing.
        extra: that brings it.

    Raises:
        MissingExtra: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] != package:
            raise
        error = MissingExtra(
            f"{package} is not installed: pip install 'greenconn[{extra}]'", name=exc.name
        )
        # A traceback through the import system says nothing more, unless only a part is missing.
        raise error from (None if exc.name == package else exc)


def native(module: str, name: str) -> Any:
    """Return what *module* has under *name* when gevent has not patched it."""
    # In a process that has not imported it nothing is patched, and it takes long to import.
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return getattr(importlib.import_module(module), name)
    return monkey.get_original(module, name)


def symbol_by_name(
    name: Any,
    aliases: Mapping[str, str] | None = None,
    imp: Callable[..., Any] | None = None,
    package: str | None = None,
    sep: str = ".",
    default: Any = None,
    **kwargs: Any,
) -> Any:
    """Import what a name stands for.

    Arguments:
        name: ``package.module:Class``, ``package.module.Class``, a module, or an alias.  What is
            not text is returned as it is.
        aliases: names for longer names.
        imp: what imports a module; None means ``importlib.import_module``.
        package: where relative names begin.
        sep: what stands between module and symbol where there is no colon.
        default: what to return when there is no such module or symbol; None raises.
        kwargs: for *imp*.

    Raises:
        ImportError: there is no such module.
        AttributeError: the module has no such symbol.
        ValueError: the name cannot be one of a module.

    >>> symbol_by_name("collections:OrderedDict") is symbol_by_name("collections.OrderedDict")
    True
    """
    if not isinstance(name, str):
        return name
    name = (aliases or {}).get(name) or name
    module_name, _, symbol = name.rpartition(":" if ":" in name else sep)
    if not module_name:
        # A bare name is a module, or with *package* a symbol of it; ".name" is a module in it.
        is_relative = name.startswith(".")
        if package and not is_relative:
            module_name = package
        else:
            module_name, symbol = (name if is_relative else symbol), ""
    try:
        try:
            module = (imp or importlib.import_module)(module_name, package=package, **kwargs)
        except ValueError as exc:
            raise ValueError(f"cannot import {name!r}: {exc}") from exc
        return getattr(module, symbol) if symbol else module
    except (ImportError, AttributeError):
        if default is None:
            raise
        return default
