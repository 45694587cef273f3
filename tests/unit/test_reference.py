"""The API reference of the site: nothing that users may import is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import greenconn

pytestmark = pytest.mark.programs

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "greenconn"
PAGES = ROOT / "docs" / "api"
#: Described by the module that defines them.
ELSEWHERE = {"health": "service.health", "rpc": "service.rpc"}
VERSIONS = {"VERSION", "__version__", "version_info", "version_info_t"}
#: ``BrokerConnection`` is carrot's name of ``Connection``.
ALIASES = {"BrokerConnection": "Connection"}


def described() -> set[str]:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES.glob("*.rst"))
    return set(re.findall(r"^\.\. (?:auto\w+|options):: (\S+)$", text, re.MULTILINE))


def test_each_name_of_the_package_is_described() -> None:
    found = described()
    names = {ALIASES.get(name, name) for name in {*greenconn.__all__} - VERSIONS}
    modules = {name.removeprefix("greenconn.") for name in found}
    missing = {
        name
        for name in names
        if f"greenconn.{name}" not in found and not _is_defined_in(name, modules)
    }
    assert missing == set()


def _is_defined_in(name: str, modules: set[str]) -> bool:
    if name in ELSEWHERE:
        return ELSEWHERE[name] in modules
    module = getattr(getattr(greenconn, name), "__module__", "")
    return module.removeprefix("greenconn.") in modules


def test_the_options_of_each_transport_are_listed() -> None:
    classes = {
        f"greenconn.{'.'.join(path.relative_to(PACKAGE).with_suffix('').parts)}.{name}".replace(
            ".__init__", ""
        )
        for path in PACKAGE.glob("transport/*/*.py")
        for name in re.findall(r"^class (\w+Options)\(", path.read_text(), re.MULTILINE)
    }
    assert len(classes) > 5
    assert classes - described() == set()
