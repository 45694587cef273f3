"""Base classes of immutable records, like frozen dataclasses, but faster to import.

``dataclasses.dataclass`` generates and compiles six functions for each class.  For options and
parameters, which every program needs, that took a tenth of the time of importing the library.  Here
these functions are written once; the fields of a class are its annotated attributes.  A :class:`Record`
is a value, an :class:`Event` a thing that happened: two of them are never equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

from greenconn.checks import check_keywords

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
