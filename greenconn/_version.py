"""The version of the package: semantic versioning, read by the build too."""

from __future__ import annotations

from typing import NamedTuple

__version__ = "0.2.0"


class version_info_t(NamedTuple):  # noqa: N801 - kombu's name
    """A version in parts."""

    major: int
    minor: int
    micro: int
    releaselevel: str = ""
    serial: str = ""


_major, _minor, _micro = __version__.split(".", 2)
VERSION = version_info = version_info_t(int(_major), int(_minor), int(_micro))
