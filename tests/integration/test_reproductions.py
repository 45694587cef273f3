"""A bug that a torture test finds is there in a process that gets SIGKILL, too."""

from __future__ import annotations

from typing import Any

import pytest

from tests.planted_handlers import PROGRAMS
from tests.quality.reproductions import OTHER, reproduce

pytestmark = [pytest.mark.programs, pytest.mark.halved]
#: Always; the others with ``--long``.
ALWAYS = ("double_charge",)


@pytest.mark.parametrize("name", [each for each in PROGRAMS if each not in OTHER])
def test_bug_is_real(name: str, own_redis: Any, long: bool) -> None:
    if name not in ALWAYS and not long:
        pytest.skip("runs only with --long")
    assert reproduce(name, own_redis.url)
