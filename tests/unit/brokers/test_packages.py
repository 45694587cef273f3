"""Finding the brokers' programs; the package system is played by scripts."""

from __future__ import annotations

import os
from pathlib import Path

import gevent
import pytest

from tests.brokers import packages
from tests.brokers.packages import NoBroker, Programs, find_pouchdb, find_rabbitmq, find_redis

pytestmark = pytest.mark.programs

APT = """#!/bin/sh
echo "$@" >> {calls}
case "$1" in
    install) [ -e {lists} ] || exit 100
        echo "Inst libx [1] (2 Debian:1 [amd64])"; echo "Inst $4 (1 Debian:1 [amd64])"
        echo "Conf libx" ;;
    download) shift; for each; do echo "$each" > "$each.deb"; done ;;
    update) touch {lists} ;;
esac
"""
DPKG = """#!/bin/sh
mkdir -p "$3/usr/bin" && cat "$2" >> "$3/usr/bin/redis-server" && chmod +x "$3/usr/bin/redis-server"
"""


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``apt-get`` and ``dpkg``, on a PATH with nothing else but the shell's tools."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    write(folder / "apt-get", APT.format(calls=tmp_path / "calls", lists=tmp_path / "lists"))
    write(folder / "dpkg", DPKG)
    for tool in ("sh", "cat", "mkdir", "chmod", "touch"):
        os.symlink(f"/bin/{tool}", folder / tool)
    monkeypatch.setattr(packages, "REDIS_PROGRAMS", ("no-such-program",))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def write(program: Path, text: str) -> Path:
    """Write a program."""
    program.write_text(text)
    program.chmod(0o755)
    return program


def calls(tmp_path: Path) -> list[str]:
    """How ``apt-get`` was called: its first arguments."""
    return [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]


def test_missing_packages_are_unpacked_once(scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").touch()
    found = find_redis(tmp_path)
    assert found.root is not None
    assert found.root.is_relative_to(tmp_path / "cache" / "greenconn" / "brokers")
    assert found.server.read_text() == "libx\nredis-server\n"
    assert find_redis(tmp_path) == found
    assert calls(tmp_path) == ["install", "download"]


@pytest.mark.parametrize("is_root", [True, False])
def test_only_root_updates_the_lists(
    scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_root: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0 if is_root else 1000)
    if is_root:
        assert find_redis(tmp_path).server.exists()
        assert calls(tmp_path) == ["install", "update", "install", "download"]
    else:
        with pytest.raises(NoBroker, match="apt-get install --simulate failed with code 100"):
            find_redis(tmp_path)
        assert calls(tmp_path) == ["install"]


def test_without_a_cache_folder_they_go_into_the_scratch(
    scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lists").touch()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = find_redis(tmp_path)
    assert found.server.is_relative_to(tmp_path / "cache")


def test_a_failed_download_leaves_no_cache(scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").touch()
    write(scripts / "dpkg", "#!/bin/sh\necho no space >&2\nexit 2\n")
    with pytest.raises(NoBroker, match=r"dpkg -x .* failed with code 2: no space"):
        find_redis(tmp_path)
    write(scripts / "dpkg", DPKG)
    assert find_redis(tmp_path).server.exists()


def test_without_a_package_system_there_is_none(
    scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "RABBITMQ_FOLDERS", ())
    (scripts / "apt-get").unlink()
    with pytest.raises(NoBroker, match="redis-server is not installed, and there is no apt-get"):
        find_redis(tmp_path)
    with pytest.raises(NoBroker, match="rabbitmq-server is not installed"):
        find_rabbitmq(tmp_path)


def test_installed_ones_come_first(
    scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "REDIS_PROGRAMS", ("no-such-program", "my-redis"))
    monkeypatch.setattr(packages, "RABBITMQ_FOLDERS", ("/nowhere", str(scripts)))
    redis = write(scripts / "my-redis", "")
    rabbitmq = write(scripts / "rabbitmq-server", "")
    write(scripts / "erl", "")
    assert find_redis(tmp_path) == Programs(server=redis)
    assert find_rabbitmq(tmp_path) == Programs(server=rabbitmq)
    assert not (tmp_path / "calls").exists()


NPM = """#!/bin/sh
echo npm "$@" >> {calls}
[ -e {broken} ] && echo no network >&2 && exit 1
mkdir -p "$3/node_modules/pouchdb-server/bin" && : > "$3/node_modules/pouchdb-server/bin/pouchdb-server"
"""


def test_pouchdb_is_fetched_from_npm_once(scripts: Path, tmp_path: Path) -> None:
    node = write(scripts / "node", "")
    write(scripts / "npm", NPM.format(calls=tmp_path / "calls", broken=tmp_path / "broken"))
    (tmp_path / "broken").touch()
    with pytest.raises(NoBroker, match=r"npm install .*no network"):
        find_pouchdb(tmp_path)
    (tmp_path / "broken").unlink()
    found = gevent.spawn(find_pouchdb, tmp_path), gevent.spawn(find_pouchdb, tmp_path)
    gevent.joinall(found, raise_error=True)
    assert found[0].value == found[1].value
    assert find_pouchdb(tmp_path) == found[0].value
    program, script = find_pouchdb(tmp_path)
    assert program == Programs(server=node)
    assert script.exists()
    assert script.is_relative_to(tmp_path / "cache" / "greenconn" / "brokers")
    assert calls(tmp_path) == ["npm", "npm"]
    assert "--ignore-scripts" in (tmp_path / "calls").read_text()


def test_node_comes_from_debian_where_there_is_none(scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").touch()
    modules = "$3/usr/share/nodejs/npm/bin"
    fake = NPM.format(calls=tmp_path / "calls", broken=tmp_path / "broken").replace("$3", "$4")
    write(tmp_path / "node", fake)
    write(
        scripts / "dpkg",
        f'#!/bin/sh\nmkdir -p "{modules}" "$3/usr/bin" && : > "{modules}/npm-cli.js"\n'
        f'cat {tmp_path}/node > "$3/usr/bin/node" && chmod +x "$3/usr/bin/node"\n',
    )
    program, script = find_pouchdb(tmp_path)
    assert program.root is not None
    assert program.root.name == "npm"
    assert program.server == program.root / "usr/bin/node"
    assert script.exists()


def test_without_npm_there_is_no_pouchdb(scripts: Path, tmp_path: Path) -> None:
    (scripts / "apt-get").unlink()
    with pytest.raises(NoBroker, match="npm is not installed, and there is no apt-get"):
        find_pouchdb(tmp_path)
