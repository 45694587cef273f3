"""Signatures that show every option, of functions that pass most of theirs on.

A function that takes ``**options`` for another one is typed with ``Unpack[...]``, which editors and type
checkers understand.  ``help()``, ``inspect.signature`` and the documentation show a single name instead.
:func:`shows` gives it the signature that it has in effect.  It is made when it is first asked for, as an
import must not pay for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from inspect import Parameter, Signature, signature
from types import FunctionType, MappingProxyType
from typing import Any, Final, TypeVar

#: Modules in the text of a type.
_MODULES: Final = re.compile(r"\b(?:collections\.abc|datetime|typing)\.")

F = TypeVar("F", bound=Callable[..., Any])


def shows(
    *arguments: type, defaults: Callable[[], Mapping[str, Any]], without: tuple[str, ...] = ()
) -> Callable[[F], F]:
    """Return a decorator that makes a function show its options by name.

    Arguments:
        arguments: TypedDicts of the options that stand for ``**options``.
        defaults: returns the defaults of options; the others have None.
        without: options that are not shown.
    """

    def show(function: F) -> F:
        def made() -> Signature:
            own = signature(_without_signature(function))
            parameters = {
                name: each
                for name, each in own.parameters.items()
                if each.kind is not Parameter.VAR_KEYWORD
            }
            known = defaults()
            for one in arguments:
                for name, annotation in one.__annotations__.items():
                    if name not in parameters and name not in without:
                        parameters[name] = Parameter(
                            name,
                            Parameter.KEYWORD_ONLY,
                            default=known.get(name),
                            annotation=_text_of(annotation),
                        )
            return own.replace(parameters=list(parameters.values()))

        function.__signature__ = ShownSignature(made)  # type: ignore[attr-defined]
        return function

    return show


def keyword_defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the defaults of the named keyword arguments of a function, by name."""
    return {**(getattr(function, "__kwdefaults__", None) or {})}


def signature_of_fields(cls: type, fields: Iterable[str]) -> ShownSignature:
    """Return the signature of a class whose arguments are its fields, each of which has a default."""

    def made() -> Signature:
        hints: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            hints.update(getattr(base, "__annotations__", {}))
        return Signature(
            [
                Parameter(
                    name, Parameter.KEYWORD_ONLY, default=getattr(cls, name), annotation=hints[name]
                )
                for name in fields
            ]
        )

    return ShownSignature(made)


def _text_of(annotation: Any) -> str:
    """Return the text of a type, as it is written in a function."""
    text = getattr(annotation, "__forward_arg__", None)
    if text is None:
        name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        text = _MODULES.sub("", name)
    return str(text)


def _without_signature(function: Any) -> FunctionType:
    """Return the same function, which has the signature of its code."""
    plain = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    plain.__kwdefaults__ = function.__kwdefaults__
    plain.__annotations__ = function.__annotations__
    return plain


class ShownSignature(Signature):
    """A signature that is made when it is first asked for."""

    __slots__ = ("_made", "_make")

    def __init__(self, make: Callable[[], Signature]) -> None:
        self._make = make
        self._made: Signature | None = None

    def _get(self) -> Signature:
        made = self._made
        if made is None:
            made = self._made = self._make()
        return made

    @property
    def parameters(self) -> MappingProxyType[str, Parameter]:
        """The parameters."""
        return self._get().parameters

    @property
    def return_annotation(self) -> Any:
        """The type of the result."""
        return self._get().return_annotation

    def replace(self, **changes: Any) -> Signature:  # type: ignore[override]
        """Return a signature with other parameters or another type of the result."""
        return self._get().replace(**changes)

    def __reduce__(self) -> Any:
        return self._get().__reduce__()
