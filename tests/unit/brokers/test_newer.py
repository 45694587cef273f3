"""Finding newer servers; the package system is played by scripts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.__main__ import has_servers
from tests.brokers import newer
from tests.brokers.environment import REDIS_SERVER, SERVERS
from tests.brokers.fetching import NoBroker, cache_folder
from tests.brokers.keeper import Keeper
from tests.brokers.packages import find_faketime, find_redis
from tests.brokers.suite import SUITE

pytestmark = pytest.mark.programs

#: Knows a mirror if there is a file; what it fetches fails.
APT = """#!/bin/sh
case "$1" in
    indextargets) [ ! -e {mirror} ] || cat {mirror} ;;
    *) echo "E: The repository has no Release file." >&2; exit 100 ;;
esac
"""
TOOLS = ("sh", "cat", "tar", "unshare", "dpkg-deb", "env", "chroot", "mkdir", "mount")


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``apt-get``, on a PATH with nothing else but what unpacks."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    _write(folder / "apt-get", APT.format(mirror=tmp_path / "mirror"))
    _write(folder / "dpkg", "#!/bin/sh\necho amd64\n")
    for tool in TOOLS:
        _write(folder / tool, f'#!/bin/sh\nPATH=/usr/bin:/bin:/usr/sbin:/sbin exec {tool} "$@"\n')
    os.remove(folder / "sh")
    (folder / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(SERVERS, "newer")
    return folder


def _write(program: Path, text: str) -> None:
    program.write_text(text)
    program.chmod(0o755)


@pytest.fixture
def root(scripts: Path, tmp_path: Path) -> Path:
    """What was unpacked once, with programs that do nothing."""
    root = cache_folder(tmp_path) / SUITE
    for program, path in newer.PROGRAMS.items():
        file = root / path.format(program).replace("*", "1.0")
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, "#!/bin/sh\n")
    (root / newer.VERSIONS).parent.mkdir()
    (root / newer.VERSIONS).write_text("redis-server 8.0.6\nrabbitmq-server 4.3.6")
    return root


@pytest.mark.parametrize("tool", ["apt-get", "dpkg-deb", "unshare", "tar"])
def test_a_tool_that_the_machine_lacks_is_named(scripts: Path, tmp_path: Path, tool: str) -> None:
    (scripts / tool).unlink()
    with pytest.raises(NoBroker, match=f"with {tool}, which is missing here"):
        find_redis(tmp_path)


def test_a_machine_without_a_mirror_of_debian(scripts: Path, tmp_path: Path) -> None:
    with pytest.raises(NoBroker, match="apt knows none here"):
        find_redis(tmp_path)


def test_a_mirror_without_the_suite(scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "mirror").write_text("http://mirror.invalid/debian\n")
    with pytest.raises(NoBroker, match="has no Release file"):
        find_redis(tmp_path)
    assert not list(cache_folder(tmp_path).glob("testing*"))


def test_a_run_without_newer_servers_is_skipped(
    scripts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Keeper() as keeper:
        assert not has_servers(keeper)
    output = capsys.readouterr().out
    assert output.startswith("skipped: newer servers cannot be had here: ")
    assert "apt knows none here" in output


def test_the_environment_chooses_the_program(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newer, "run", lambda command: "")
    assert find_redis(tmp_path).server.name == "redis-server"
    assert find_redis(tmp_path, "valkey").server.name == "valkey-server"
    monkeypatch.setenv(REDIS_SERVER, "valkey")
    found = find_redis(tmp_path)
    assert found.server == tmp_path / "newer" / "valkey-server"
    assert found.folder == tmp_path / "newer"
    assert os.access(found.server, os.X_OK)
    assert newer.versions(tmp_path) == {"redis-server": "8.0.6", "rabbitmq-server": "4.3.6"}


def test_a_program_that_cannot_be_entered(root: Path, scripts: Path, tmp_path: Path) -> None:
    _write(scripts / "unshare", "#!/bin/sh\necho unshare failed: not permitted >&2\nexit 1\n")
    with pytest.raises(NoBroker, match="not permitted"):
        find_redis(tmp_path)
    assert not (tmp_path / "newer").exists()


def test_a_package_without_its_program(root: Path, tmp_path: Path) -> None:
    (root / "usr/bin/epmd").unlink()
    with pytest.raises(NoBroker, match="no usr/bin/epmd in "):
        find_redis(tmp_path)


def test_no_newer_server_has_a_clock_of_its_own(root: Path, tmp_path: Path) -> None:
    with pytest.raises(NoBroker, match="libfaketime"):
        find_faketime(tmp_path)
