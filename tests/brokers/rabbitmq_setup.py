"""What a private RabbitMQ runs with: its environment, its configuration, its first content."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.brokers.packages import NoBroker, Programs

#: Debian's ``erl`` has /usr/lib/erlang written into it, so unpacked packages need another.
ERL = """#!/bin/sh
ROOTDIR='{erlang}' BINDIR='{binaries}' EMU=beam PROGNAME=erl
export ROOTDIR BINDIR EMU PROGNAME
exec "$BINDIR/erlexec" "$@"
"""
DISK_FREE_LIMIT = "10MB"
#: The file in its home with the secret of an Erlang node.
COOKIE = ".erlang.cookie"
CONFIG = """\
definitions.import_backend = local_filesystem
definitions.local.path = {definitions}
default_vhost = /
loopback_users.guest = true
disk_free_limit.absolute = {limit}
vm_memory_high_watermark.absolute = 2GB
heartbeat = 60
log.file.level = info
"""


def write_files(
    directory: Path,
    vhosts: tuple[str, ...],
    plugins: tuple[str, ...] = (),
    settings: Mapping[str, object] | None = None,
    cookie: str | None = None,
) -> None:
    """Write what the environment names into the broker's *directory*."""
    if cookie is not None:
        secret = directory / COOKIE
        secret.write_text(cookie)
        secret.chmod(0o400)
    (directory / "log").mkdir()
    (directory / "empty").touch()
    (directory / "plugins").write_text(f"[{','.join(plugins)}].\n")
    definitions = directory / "definitions.json"
    definitions.write_text(json.dumps(_definitions(vhosts)))
    further = "".join(f"{name} = {value}\n" for name, value in (settings or {}).items())
    (directory / "rabbitmq.conf").write_text(
        CONFIG.format(definitions=definitions, limit=DISK_FREE_LIMIT) + further
    )


def joining(seed: str, name: str) -> dict[str, object]:
    """Return the lines of ``rabbitmq.conf`` by which the node *name* joins the cluster of *seed*."""
    peers = "cluster_formation.classic_config.nodes"
    backend = {"cluster_formation.peer_discovery_backend": "classic_config"}
    return {**backend, f"{peers}.1": seed, f"{peers}.2": name}


def _definitions(vhosts: tuple[str, ...]) -> dict[str, object]:
    """What the broker has from its first start; importing it is quicker than ``rabbitmqctl``."""
    salt = b"salt"
    digest = base64.b64encode(salt + hashlib.sha256(salt + b"guest").digest()).decode()
    grants = {"configure": ".*", "write": ".*", "read": ".*"}
    return {
        "users": [
            {
                "name": "guest",
                "password_hash": digest,
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": "administrator",
            }
        ],
        "vhosts": [{"name": vhost} for vhost in vhosts],
        "permissions": [{"user": "guest", "vhost": vhost, **grants} for vhost in vhosts],
    }


def environment(
    directory: Path, programs: Programs, *, port: int, dist: int, epmd: int, ctl: int
) -> dict[str, str]:
    """The whole environment of the broker and its tools: nothing of /etc or of the user's."""
    local = "-kernel inet_dist_use_interface {127,0,0,1}"
    return {
        **programs.libraries(),
        "PATH": _path(directory, programs),
        "LANG": "C.UTF-8",
        "HOME": str(directory),  # the cookie is there
        "RABBITMQ_CONF_ENV_FILE": str(directory / "empty"),
        "RABBITMQ_NODENAME": f"greenconn{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(dist),
        "RABBITMQ_CTL_DIST_PORT_MIN": str(ctl),
        "RABBITMQ_CTL_DIST_PORT_MAX": str(ctl + 10),
        "RABBITMQ_CTL_ERL_ARGS": local,
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
        "RABBITMQ_MNESIA_BASE": str(directory / "data"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_LOGS": str(directory / "log" / "broker.log"),
        "RABBITMQ_PID_FILE": str(directory / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": local,
        # Not one core each for the schedulers of every broker on the machine.
        "RABBITMQ_SCHEDULER_BIND_TYPE": "u",
        "ERL_EPMD_PORT": str(epmd),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_CRASH_DUMP_SECONDS": "0",
    }


def _path(directory: Path, programs: Programs) -> str:
    """The folders with ``erl``, ``epmd`` and the shell's tools."""
    system = ["/usr/local/bin", "/usr/bin", "/bin", "/opt/homebrew/bin"]
    if programs.folder is not None:
        return os.pathsep.join([str(programs.folder), *system])
    if programs.root is None:
        erl = shutil.which("erl")
        return os.pathsep.join([*_erlang_folders(Path(erl)), *system] if erl else system)
    erlang = programs.root / "usr/lib/erlang"
    binaries = next(iter(sorted(erlang.glob("erts-*/bin"))), None)
    if binaries is None:
        raise NoBroker(f"no Erlang in {programs.root}")
    folder = directory / "bin"
    folder.mkdir()
    program = folder / "erl"
    program.write_text(ERL.format(erlang=erlang, binaries=binaries))
    program.chmod(0o755)
    return os.pathsep.join([str(folder), str(binaries), *system])


def _erlang_folders(erl: Path) -> list[str]:
    """Return the folders with an installed Erlang's programs."""
    root = erl.resolve().parents[1]
    found = [erl.parent, *root.glob("erts-*/bin"), *root.glob("lib/erl_interface-*/bin")]
    return list(map(str, found))
