"""Validation of arguments and options, and the base classes of immutable records.

A :class:`Record` is a value, an :class:`Event` a thing that happened: two of them are never equal.  They
are like frozen dataclasses, but ``dataclass`` compiles six functions for each class.  For options and
parameters, which every program needs, that took a tenth of the time of importing the library.

Also signatures that show every option, of functions that pass most of theirs on.  A function that takes
``**options`` for another one is typed with ``Unpack[...]``, which editors and type checkers understand.
``help()``, ``inspect.signature`` and the documentation show a single name instead. :func:`shows` gives
it the signature that it has in effect.  It is made when it is first asked for, as an import must not pay
for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import timedelta
from functools import lru_cache, partial
from inspect import Parameter, Signature, signature
from types import AsyncGeneratorType, CoroutineType, FunctionType, GeneratorType, MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, TypeAlias, TypeVar, overload

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from greenconn.abc import Channel, ChannelOrConnection
    from greenconn.connection import Connection


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


T = TypeVar("T")

#: A time as functions and options take it: a number of seconds, or a timedelta.
Seconds: TypeAlias = float | timedelta

#: Plain values that stand for no text; any other object may, as an exchange stands for its name.
_NO_TEXT: Final = (bytes, bytearray, int, float, list, tuple, dict, set, frozenset)
_NO_TABLE: Final = (str, bytes, bytearray, int, float, list, tuple, set, frozenset)

#: RabbitMQ's arguments, those of its plugins and of LavinMQ among them.
QUEUE_ARGUMENTS: Final = frozenset(
    {
        *("x-cache-size", "x-cache-ttl", "x-consumer-disconnected-timeout", "x-consumer-timeout"),
        *("x-dead-letter-exchange", "x-dead-letter-routing-key", "x-dead-letter-strategy"),
        *("x-deduplication-header", "x-delayed-retry-max", "x-delayed-retry-min"),
        *("x-delayed-retry-type", "x-delivery-limit", "x-expires", "x-ha-policy"),
        *("x-initial-cluster-size", "x-max-age", "x-max-in-memory-bytes", "x-max-in-memory-length"),
        *("x-max-length", "x-max-length-bytes", "x-max-priority", "x-message-deduplication"),
        *("x-message-ttl", "x-overflow", "x-queue-leader-locator", "x-queue-master-locator"),
        *("x-queue-mode", "x-queue-type", "x-queue-version", "x-quorum-initial-group-size"),
        *("x-quorum-target-group-size", "x-single-active-consumer", "x-stream-filter-size-bytes"),
        *("x-stream-max-segment-size-bytes", "x-super-stream"),
    }
)
EXCHANGE_ARGUMENTS: Final = frozenset(
    {
        *("alternate-exchange", "hash-header", "hash-property", "x-cache-size", "x-cache-ttl"),
        *("x-delayed-type", "x-message-deduplication", "x-super-stream"),
    }
)
EXCHANGE_TYPES: Final = frozenset(
    {
        *("direct", "fanout", "headers", "topic", "x-consistent-hash", "x-delayed-message"),
        *("x-jms-topic", "x-local-random", "x-message-deduplication", "x-modulus-hash"),
        *("x-presence", "x-random", "x-recent-history", "x-rtopic"),
    }
)
CONSUMER_ARGUMENTS: Final = frozenset(
    {
        *("x-cancel-on-ha-failover", "x-consumer-timeout", "x-credit", "x-priority"),
        *("x-stream-filter", "x-stream-match-unfiltered", "x-stream-offset"),
    }
)
#: How much a name resembles another one that it is taken for: an exchange of two letters, a missing or
#: another word at its end.
_RESEMBLANCE: Final = 0.77

#: Unknown keywords of kombu's classes that were logged, with those classes; None: they are refused.
_tolerated: set[tuple[str, str]] | None = None


def is_number(value: object) -> bool:
    """Return whether *value* is a finite number, but not a bool."""
    try:
        return (
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        )
    except OverflowError:  # an integer beyond all floats
        return False


@overload
def in_seconds(value: timedelta) -> float: ...


@overload
def in_seconds(value: T | timedelta) -> T | float: ...


def in_seconds(value: object) -> object:
    """Return a timedelta as a number of seconds, and anything else as it is."""
    return value.total_seconds() if isinstance(value, timedelta) else value


def milliseconds(option: str, seconds: Any) -> str:
    """Return *seconds*, the value of *option*, as the property ``expiration`` has them.

    Raises:
        ValueError: they are no number that is at least 0.
    """
    seconds = in_seconds(seconds)
    if not is_number(seconds) or seconds < 0:
        raise ValueError(f"{option} must be a number of seconds, at least 0, got {seconds!r}")
    return str(int(seconds * 1000))


def check_seconds(
    options: object, *names: str, above_zero: bool = False, optional: bool = True
) -> None:
    """Check that each option is a number of seconds, at least 0, or None if *optional*.

    A timedelta is replaced by its number of seconds.

    Arguments:
        above_zero: 0 is none of them.

    Raises:
        ValueError: it is not.
    """
    for name in names:
        given = getattr(options, name)
        value = in_seconds(given)
        if value is not given:
            object.__setattr__(options, name, value)  # they are frozen
        if value is None:
            if optional:
                continue
        elif (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and (0 < value < math.inf or (value == 0 and not above_zero))
        ):
            continue
        bound = " above 0" if above_zero else ", at least 0"
        raise invalid(options, name, f"a number of seconds{bound}{_or_none(optional)}")


def check_count(
    options: object, *names: str, least: int = 0, most: int | None = None, optional: bool = True
) -> None:
    """Check that each option is an integer from *least* to *most*, or None if *optional*.

    Raises:
        ValueError: it is not.
    """
    for name in names:
        value = getattr(options, name)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if (value is None and optional) or (
            is_whole and value >= least and (most is None or value <= most)
        ):
            continue
        if most is not None:
            bounds = f"an integer from {least} to {most}"
        else:
            bounds = "a positive integer" if least == 1 else f"an integer, at least {least}"
        raise invalid(options, name, bounds + _or_none(optional))


def check_prefetch_count(count: object, most: int | None = None) -> None:
    """Check the limit that a channel is to have.

    Raises:
        ValueError: it is not an integer from 0 to *most*.
    """
    if isinstance(count, int) and not isinstance(count, bool) and count >= 0:
        if most is None or count <= most:
            return
        bounds = f"from 0 to {most}"
    else:
        bounds = "at least 0"
    raise ValueError(f"prefetch_count must be an integer, {bounds}, got {count!r}")


def check_type(options: object, kind: type, *names: str, optional: bool = False) -> None:
    """Check that each option is of type *kind* (bool includes 0 and 1), or None if *optional*.

    Raises:
        ValueError: it is not.
    """
    for name in names:
        value = getattr(options, name)
        is_flag = kind is bool and value in (0, 1)
        if not isinstance(value, kind) and not is_flag and not (value is None and optional):
            raise invalid(options, name, f"of type {kind.__name__}" + _or_none(optional))


def check_callable(options: object, *names: str) -> None:
    """Check that each option is a callable or None.

    Raises:
        ValueError: it is not.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and not callable(value):
            raise invalid(options, name, "a callable, or None")


def check_keywords(
    called: str, names: Iterable[str], known: Collection[str], *, is_kombus: bool = False
) -> None:
    """Check that each keyword is one of the *known*.

    Arguments:
        called: the class or function that the program has called, for the error.
        is_kombus: it is kombu's, so that programs which import it by kombu's name may pass what kombu
            ignores; each of those keywords is logged once.

    Raises:
        TypeError: one is not.
    """
    for name in names:
        if name in known:
            continue
        text = f"{called}() has no option {name!r}; {did_you_mean(name, known)}"
        if not is_kombus or _tolerated is None:
            raise TypeError(text)
        _log_tolerated(called, name, f"unknown keyword, accepted as by kombu: {text}")


def _log_tolerated(called: str, name: str, text: str) -> None:
    """Log, once, what programs of kombu may do."""
    if _tolerated is not None and (called, name) not in _tolerated:
        import logging  # for programs of kombu only: green imports this, and registers nothing

        _tolerated.add((called, name))
        logging.getLogger("greenconn.checks").warning("%s", text)


def tolerate_keywords() -> None:
    """Accept unknown keywords of kombu's classes from now on, with a warning in the log for each."""
    global _tolerated
    if _tolerated is None:
        _tolerated = set()


def is_kombu() -> bool:
    """Return whether programs of kombu or carrot run here, which import greenconn by that name."""
    return _tolerated is not None


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return a hint for an unknown *name*: the nearest of the *known* names, else all of them."""
    from difflib import get_close_matches  # for errors only

    near = get_close_matches(name, sorted(known), 1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"


def _or_none(optional: bool) -> str:
    return ", or None" if optional else ""


def invalid(options: object, name: str, wanted: str) -> ValueError:
    """Return the error for the option *name*, which must be *wanted*.

    Its text names the option with the function that takes it, if known, or with its class; alone if the
    *function_name* is empty, since several functions take it.  The value of a hidden option is left
    out, since it may be a secret.
    """
    owner = getattr(options, "function_name", type(options).__name__)
    full = f"{owner}.{name}" if owner else name
    value = getattr(options, name)
    is_hidden = name in getattr(options, "hidden", ())
    shown = f"a value of type {type(value).__name__}" if is_hidden else repr(value)
    return ValueError(f"{full} must be {wanted}, got {shown}")


#: Results of calling a function that leave its body unrun.
_UNRUN: Final = (CoroutineType, GeneratorType, AsyncGeneratorType)
#: Flags of a code object -> the kind of its function.  ``inspect`` has them, but is slow to import.
_KINDS: Final = ((0x80, "async def"), (0x200, "an async generator"), (0x20, "a generator"))
_REMEDY: Final = (
    "greenconn calls plain functions in greenlets, where waiting never blocks the others: use "
    "def and return, without async, await and yield"
)


def check_runs(name: str, function: object) -> None:
    """Check that calling *function* runs its body; otherwise its messages would be lost.

    Looks into partials, methods and objects with ``__call__``.

    Arguments:
        name: the argument or the method of that function, for the error.

    Raises:
        TypeError: *function* is ``async def``, a generator or an async generator.
    """
    inner = function
    while isinstance(inner, partial):
        inner = inner.func
    called: Callable[..., object] | None = getattr(type(inner), "__call__", None)  # noqa: B004 - which
    for each in (inner, called):
        flags = getattr(getattr(each, "__code__", None), "co_flags", 0)
        for flag, kind in _KINDS:
            if isinstance(flags, int) and flags & flag:
                raise TypeError(f"{name}={function!r} is {kind}, which would never run: {_REMEDY}")


def check_has_run(name: str, result: object) -> None:
    """Check the result of a call, as :func:`check_runs` cannot tell for every callable.

    Arguments:
        name: the function, for the error.

    Raises:
        TypeError: *result* is a coroutine, a generator or an async generator.
    """
    if isinstance(result, _UNRUN):
        if not isinstance(result, AsyncGeneratorType):
            result.close()  # otherwise Python warns that it was never awaited
        kind = type(result).__name__.replace("_", " ")
        raise TypeError(f"{name} returned the {kind} {result!r}, which never runs: {_REMEDY}")


def is_connection(obj: object) -> TypeIs[Connection]:
    """Tell whether *obj* is a connection (rather than a channel), by protocol.

    >>> is_connection(object())
    False
    """
    # On the class: asking the object for its default channel would open it.
    return hasattr(type(obj), "default_channel")


def maybe_channel(channel: ChannelOrConnection) -> Channel:
    """Return the default channel of a connection, and anything else as it is.  May switch."""
    return channel.default_channel if is_connection(channel) else channel


def check_names(entity: object, **names: object) -> None:
    """Check that *names*, by their arguments, may be text.

    Raises:
        TypeError: one is a number, bytes or a collection.
    """
    for argument, value in names.items():
        if value and isinstance(value, _NO_TEXT):
            raise TypeError(f"{argument} of {type(entity).__name__} must be text, got {value!r}")


def check_tables(entity: object, *arguments: str) -> None:
    """Check that those attributes may be dicts of arguments.

    Raises:
        TypeError: one is text, a number or another collection.
    """
    for argument in arguments:
        value = getattr(entity, argument)
        if value and isinstance(value, _NO_TABLE):
            raise TypeError(
                f"{argument} of {type(entity).__name__} must be a dict or None, got {value!r}"
            )


def check_argument_names(entity: Any, argument: str, known: frozenset[str]) -> None:
    """Check that no name among the arguments is a misspelled one of the *known*.

    RabbitMQ accepts and ignores every name that it does not know: with ``x-dead-letter-exchagne``,
    messages are lost.  Names that resemble none are of a plugin.

    Arguments:
        entity: has a name.
        argument: the attribute with the dict of arguments.

    Raises:
        ValueError: one is; programs that import this by kombu's name get a line in the log.
    """
    for name in getattr(entity, argument) or ():
        if name not in known and isinstance(name, str) and (meant := resembled(name, known)):
            _refuse_misspelled(entity, argument, f"brokers ignore {name!r}", name, meant)


def check_exchange_type(exchange: Any) -> None:
    """Check that the type of an exchange is not a misspelled one.

    RabbitMQ closes the connection, which all greenlets share, for a type that it does not know.  Types
    that resemble none are of a plugin.

    Raises:
        ValueError: it is; programs that import this by kombu's name get a line in the log.
    """
    name = exchange.type
    if name and name not in EXCHANGE_TYPES and (meant := resembled(name, EXCHANGE_TYPES)):
        _refuse_misspelled(exchange, "type", f"no broker has {name!r}", name, meant)


def _refuse_misspelled(entity: Any, argument: str, reason: str, name: str, meant: str) -> None:
    kind = type(entity).__name__
    text = f"{argument} of {kind} {entity.name!r}: {reason}; did you mean {meant!r}?"
    if _tolerated is None:
        raise ValueError(text)
    _log_tolerated(kind, name, f"misspelled, accepted as by kombu: {text}")


@lru_cache(256)
def resembled(name: str, known: frozenset[str]) -> str | None:
    """Return the one of the *known* names that an unknown one is taken for; None: it resembles none."""
    from difflib import get_close_matches  # rarely needed

    near = get_close_matches(name, sorted(known), 1, _RESEMBLANCE)
    return near[0] if near else None


if TYPE_CHECKING:
    from typing_extensions import Self, dataclass_transform
else:
    T = TypeVar("T")

    def dataclass_transform(**options: bool) -> Callable[[T], T]:
        """Stand-in for the decorator of Python 3.11, for type checkers."""
        return lambda cls: cls


class _Immutable:
    """An object whose fields are its annotated attributes."""

    #: The names of all fields, in order of definition.
    fields: ClassVar[tuple[str, ...]] = ()
    #: Fields that ``repr()`` and the hash leave out: secrets, and values that cannot be hashed.
    hidden: ClassVar[frozenset[str]] = frozenset()
    #: Those of ``fields``.
    _names: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = (name for name, hint in cls.__annotations__.items() if "ClassVar" not in hint)
        cls.fields = tuple(dict.fromkeys((*cls.fields, *own)))
        cls._names = frozenset(cls.fields)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be deleted")

    def __repr__(self) -> str:
        shown = (
            f"{name}={getattr(self, name)!r}" for name in self.fields if name not in self.hidden
        )
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Record(_Immutable):
    """The base class of records.

    Each annotated attribute of a subclass is a field, with its value as the default, unless it is a
    ``ClassVar``.

    Arguments:
        values: field names -> values; the other fields have their defaults.

    Raises:
        TypeError: a name is not that of a field, or an argument is positional.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__init__ is Record.__init__:
            cls.__signature__ = signature_of_fields(cls, cls.fields)  # type: ignore[attr-defined]

    def __init__(self, *args: object, **values: Any) -> None:
        if args:
            name = type(self).__name__
            shown = ", ".join(
                f"{field}={value!r}"
                for field, value in zip(self.fields, args)  # noqa: B905 - there may be too many
                if field not in self.hidden
            )
            raise TypeError(f"{name} takes keyword arguments only, as in {name}({shown})")
        if not values.keys() <= self._names:
            check_keywords(type(self).__name__, values, self.fields)
        self.__dict__.update(values)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Validate the values; raise ValueError for an invalid one."""

    def replace(self, **values: Any) -> Self:
        """Return a copy with *values* in some of its fields."""
        return type(self)(**{**self.__dict__, **values})

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.fields)

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in self.fields if name not in self.hidden))


@dataclass_transform(frozen_default=True, eq_default=False)
class Event(_Immutable):
    """The base class of events.

    Each annotated attribute of a subclass is a field.  Events are compared by identity, so that they can
    be keys of what a listener keeps of them.

    Arguments:
        args, values: the values of all fields, by position or by name.

    Raises:
        TypeError: a field has no value or more than one, or there is no such field.
    """

    def __init__(self, *args: Any, **values: Any) -> None:
        if values:
            args = (
                *args,
                *(values.pop(name) for name in self.fields[len(args) :] if name in values),
            )
        if values or len(args) != len(self.fields):
            expected = ", ".join(self.fields)
            raise TypeError(f"{type(self).__name__} takes one value for each of: {expected}")
        self.__dict__.update(zip(self.fields, args))  # noqa: B905 - they are equally many
