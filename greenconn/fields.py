"""Objects with fields as plain values: dataclasses, msgspec's Structs, pydantic's models.

No library is imported here, nor ``dataclasses``: a program that has such an object has imported its
library.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

#: An attribute of the classes of pydantic: models, root models and its dataclasses.
MODEL: Final = "__pydantic_validator__"
#: An attribute of msgspec's Structs.
STRUCT: Final = "__struct_fields__"


def as_plain(value: Any, other: Callable[[Any], Any] | None = None) -> Any:
    """Return an object with fields as plain values, whose own fields may be such objects.

    What is none of these is returned as it is.

    A dataclass is a dict of its fields, an enumeration its value.  A Struct is what msgspec makes of
    it, a model what pydantic makes of it for JSON.

    Arguments:
        other: does this for what msgspec does not know; None: this function.
    """
    kind = type(value)
    if hasattr(kind, MODEL):
        return _model_as_plain(value)
    if hasattr(kind, STRUCT):
        return sys.modules["msgspec"].to_builtins(value, str_keys=True, enc_hook=other or as_plain)
    if hasattr(kind, "__dataclass_fields__"):
        fields = sys.modules["dataclasses"].fields
        return {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, Enum):
        return value.value
    return value


def _model_as_plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is None:  # a dataclass of pydantic
        dump = sys.modules["pydantic"].RootModel[type(value)](value).model_dump
    return dump(mode="json", by_alias=True)
