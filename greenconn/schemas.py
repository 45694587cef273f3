"""Conversion of decoded bodies to the types that handlers declare.

A dataclass, a TypedDict and a Struct are converted by msgspec, a model by pydantic, which is optional.
The body is first decoded by its content type, so that a schema does not depend on the serializer.
"""

from __future__ import annotations

import re
import sys
import typing
from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import is_dataclass
from functools import lru_cache, partial
from inspect import Parameter, Signature, getattr_static, signature, unwrap
from types import GenericAlias
from typing import Any, Final

import msgspec

from greenconn.exceptions import DecodeError, error_text
from greenconn.importing import needed
from greenconn.jsoncodec import MODEL, STRUCT

Convert = Callable[[Any], Any]

#: Errors of pydantic that are reported at most.
ERRORS: Final = 3
#: Characters of a report, which may have keys of the body in it.
LONGEST_TEXT: Final = 500
#: Converters of replies that are kept.
KEPT: Final = 256
#: Texts of msgspec that quote the body.
_QUOTING: Final = re.compile(
    r"(Invalid (?:enum )?value) .*?((?: - at `[^`]*`(?: in `[^`]*`)?)?)", re.DOTALL
)
#: A text of pydantic that quotes the body.
_UNKNOWN_TAG: Final = "union_tag_invalid"


def signature_of(function: Callable[..., Any]) -> Signature:
    """Return the signature of *function*, whether or not its annotations can be evaluated.

    Raises:
        TypeError, ValueError: it has none.
    """
    if sys.version_info >= (3, 14):
        from annotationlib import Format

        return signature(function, annotation_format=Format.FORWARDREF)
    return signature(function)


def schema_of(function: Callable[..., Any]) -> Any:
    """Return the annotation of a function's first parameter if bodies are to be converted to it.

    Returns:
        None where it names no dataclass, TypedDict, Struct or model.

    Raises:
        TypeError: the annotation cannot be evaluated.
    """
    try:
        first = next(iter(signature_of(function).parameters.values()), None)
    except (TypeError, ValueError):
        return None  # of a function in C, which does not say
    if first is None or first.kind not in (
        Parameter.POSITIONAL_ONLY,
        Parameter.POSITIONAL_OR_KEYWORD,
    ):
        return None
    if first.annotation is Parameter.empty:
        return None
    schema = _evaluated(first.annotation, function)
    return schema if any(map(_has_fields, _types_in(schema))) else None


def item_of(schema: Any) -> Any:
    """Return the type of the items of ``list[...]``; None if *schema* is nothing like it."""
    arguments = typing.get_args(schema)
    return arguments[0] if len(arguments) == 1 else None


def converter_of(schema: Any) -> Convert | None:
    """Return a function that converts a decoded body to *schema*; None: bodies stay as they are.

    It raises :class:`~greenconn.exceptions.DecodeError` for a body that does not fit.

    Arguments:
        schema: a type; ``object`` and ``Any`` leave bodies as they are.

    Raises:
        TypeError: *schema* cannot be used.
        MissingExtra: the library that converts to it is not installed.
    """
    if schema is object or schema is Any:
        return None
    make = _by_pydantic if _has_models(schema) else _by_msgspec
    try:
        return make(schema)
    except ImportError:
        raise
    except Exception as exc:
        raise TypeError(
            f"schema must be a type that bodies can be converted to, got {schema!r}: {error_text(exc)}"
        ) from exc


def reply_converter_of(schema: Any) -> Convert | None:
    """Return what :func:`converter_of` returns, which is kept for the next call.

    Raises:
        TypeError: *schema* cannot be used.
        MissingExtra: the library that converts to it is not installed.
    """
    try:
        return _kept(schema)
    except TypeError:
        return converter_of(schema)  # it has no hash, or is none


_kept = lru_cache(maxsize=KEPT)(converter_of)


def json_schema_of(schema: Any, prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the JSON schema of a type, and those that it refers to by *prefix* and their names.

    Raises:
        TypeError: JSON has nothing like it.
        MissingExtra: the library that converts to it is not installed.
    """
    if not _has_models(schema):
        (found,), parts = msgspec.json.schema_components(
            (schema,), ref_template=f"{prefix}{{name}}"
        )
        return found, parts
    adapter = needed("pydantic", "pydantic", "pydantic").TypeAdapter(schema)
    found = adapter.json_schema(ref_template=f"{prefix}{{model}}")
    parts = found.pop("$defs", {})
    if isinstance(schema, type) and found.get("type") == "object":
        parts[schema.__name__] = found
        found = {"$ref": f"{prefix}{schema.__name__}"}
    return found, parts


def _has_models(schema: Any) -> bool:
    return any(hasattr(each, MODEL) for each in _types_in(schema))


def _by_msgspec(schema: Any) -> Convert:
    msgspec.json.Decoder(schema)  # reads the fields and their types, so that errors come now
    convert, invalid = msgspec.convert, msgspec.ValidationError
    name = _name_of(schema)

    def converted(body: Any) -> Any:
        try:
            return convert(body, schema, str_keys=True)  # all keys of JSON are text
        except invalid as exc:
            found = _QUOTING.fullmatch(str(exc))
            raise _misfit(name, "".join(found.groups()) if found else str(exc)) from exc
        except Exception as exc:
            raise _misfit(name, type(exc).__name__) from exc

    return converted


def _by_pydantic(schema: Any) -> Convert:
    pydantic = needed("pydantic", "pydantic", "pydantic")
    validate, invalid = pydantic.TypeAdapter(schema).validate_python, pydantic.ValidationError
    name = _name_of(schema)

    def converted(body: Any) -> Any:
        try:
            return validate(body)
        except invalid as exc:
            errors = exc.errors(include_url=False, include_context=False, include_input=False)
            text = "; ".join(map(_said, errors[:ERRORS]))
            raise _misfit(name, text) from exc
        except Exception as exc:
            raise _misfit(name, type(exc).__name__) from exc

    return converted


def _said(error: Any) -> str:
    """Return an error of pydantic as msgspec would say it."""
    text = "Input has an unknown tag" if error["type"] == _UNKNOWN_TAG else error["msg"]
    path = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in error["loc"])
    return f"{text} - at `${path}`"


def _misfit(name: str, text: str) -> DecodeError:
    return DecodeError(f"the body does not fit {name}: {text[:LONGEST_TEXT]}")


def _name_of(schema: Any) -> str:
    return schema.__qualname__ if isinstance(schema, type) else str(schema)


# Annotations


def _evaluated(annotation: Any, function: Any) -> Any:
    """Return an annotation whose text, or the text in it, is evaluated where *function* is defined."""
    inner = _plain_function(function)
    defined = getattr(inner, "__globals__", {})
    code, cells = getattr(inner, "__code__", None), getattr(inner, "__closure__", None) or ()
    enclosed: dict[str, Any] = {}
    for name, cell in zip(getattr(code, "co_freevars", ()), cells, strict=False):
        with suppress(ValueError):  # not assigned yet
            enclosed[name] = cell.cell_contents

    def holder() -> None:
        """Hold the annotation."""

    holder.__annotations__ = {"body": _with_references(annotation)}
    # Plain types are often imported for type checkers only: Any, Mapping...
    names = ChainMap(enclosed, defined, vars(typing))
    try:
        return typing.get_type_hints(holder, defined, names, include_extras=True)["body"]
    except Exception as exc:
        text = annotation if isinstance(annotation, str) else repr(annotation)
        raise TypeError(
            f"the annotation of a handler's body must be known where the handler is defined, got "
            f"{text!r} ({exc}): import it at run time, or pass schema=, which is object for bodies "
            f"as they are"
        ) from exc


def _with_references(annotation: Any) -> Any:
    """Return an annotation in which text in brackets is a reference, as Python 3.10 reads none there."""
    if not isinstance(annotation, GenericAlias):
        return annotation
    arguments = (
        typing.ForwardRef(each) if isinstance(each, str) else _with_references(each)
        for each in annotation.__args__
    )
    return GenericAlias(typing.get_origin(annotation), tuple(arguments))


def _plain_function(function: Any) -> Any:
    """Return the function behind partials, methods, decorators and objects with ``__call__``."""
    while True:
        if isinstance(function, partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = unwrap(function)
        elif hasattr(function, "__func__"):
            function = function.__func__
        elif isinstance(function, type):
            return getattr_static(function, "__init__")
        elif hasattr(function, "__globals__"):
            return function
        else:
            return type(function).__call__


def _types_in(schema: Any) -> Iterator[Any]:
    """Yield *schema*, the types that it consists of, and those of their fields."""
    seen: list[Any] = []
    left = [schema]
    while left:
        each = left.pop()
        if any(each is known for known in seen):
            continue
        seen.append(each)
        yield each
        left += typing.get_args(each)
        for inner in (
            typing.get_origin(each),
            getattr(each, "__supertype__", None),  # of a NewType
            getattr(each, "__value__", None) if type(each).__name__ == "TypeAliasType" else None,
        ):
            if inner is not None:
                left.append(inner)
        if _has_fields(each):
            try:
                left += typing.get_type_hints(each, include_extras=True).values()
            except Exception:
                pass  # the library that converts says what is wrong


def _has_fields(kind: Any) -> bool:
    """Return whether *kind* is a dataclass, a TypedDict, a Struct or a model."""
    return isinstance(kind, type) and (
        is_dataclass(kind)
        or hasattr(kind, MODEL)
        or hasattr(kind, STRUCT)
        or (issubclass(kind, dict) and hasattr(kind, "__required_keys__"))
    )
