"""Building the clients in other languages."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.native import NATIVE, CannotBuild


@pytest.mark.parametrize("name", NATIVE)
def test_a_missing_compiler_is_named_with_its_package(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotBuild, match=f"there is no {NATIVE[name].compiler} .*Debian"):
        NATIVE[name].build(tmp_path, name)


def test_a_missing_library_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'amqp.h: No such file or directory' >&2\nexit 1\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(CannotBuild, match=r"amqp\.h: No such file .*librabbitmq-dev"):
        NATIVE["rabbitmq-c"].build(tmp_path, "rabbitmq-c")
