"""Records: immutable classes like frozen dataclasses, made without compiling code.

``dataclasses.dataclass`` writes and compiles six functions for each class.  For options and parameters,
which every program needs, that took a tenth of the time of importing the library.  Here they are
written once, and the fields of a class are its attributes, which hold the defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self, dataclass_transform
else:
    T = TypeVar("T")

    def dataclass_transform(**options: bool) -> Callable[[T], T]:
        """Stand-in for the decorator of Python 3.11, for type checkers."""
        return lambda cls: cls


__all__ = ["Record"]


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Record:
    """The base of such a class.  Each annotated attribute of a subclass is a field, with its default;
    ``ClassVar`` is none.

    Arguments:
        values: of the fields that are not to have their default.

    Raises:
        TypeError: a name is not that of a field.
    """

    #: The names of all fields, in their order.
    fields: ClassVar[tuple[str, ...]] = ()
    #: Those that neither ``repr()`` shows nor the hash is made of: secrets, and what cannot be hashed.
    hidden: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = (name for name, hint in cls.__annotations__.items() if "ClassVar" not in hint)
        cls.fields = tuple(dict.fromkeys((*cls.fields, *own)))

    def __init__(self, *args: object, **values: Any) -> None:
        if args:
            name = type(self).__name__
            shown = ", ".join(
                f"{field}={value!r}"
                for field, value in zip(self.fields, args)  # noqa: B905 - there may be too many
                if field not in self.hidden
            )
            raise TypeError(f"{name} takes keyword arguments only, as in {name}({shown})")
        if not values.keys() <= set(self.fields):
            unknown = ", ".join(sorted(values.keys() - set(self.fields)))
            raise TypeError(f"{type(self).__name__} has no field {unknown}")
        self.__dict__.update(values)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check the values; raise a ValueError for one that is none."""

    def replace(self, **values: Any) -> Self:
        """Return the same with other *values* of some fields."""
        return type(self)(**{**self.__dict__, **values})

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.fields)

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in self.fields if name not in self.hidden))

    def __repr__(self) -> str:
        shown = (
            f"{name}={getattr(self, name)!r}" for name in self.fields if name not in self.hidden
        )
        return f"{type(self).__name__}({', '.join(shown)})"
