"""Newer servers than this system has: a later Debian's packages, unpacked into a root of their own.

Each program runs in a mount namespace of its own, with
that root as ``/`` (it needs a newer C library than this system's), on this machine's network, and with
this machine's temporary folder and the checkout.  Without root that takes a user namespace.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from pathlib import Path

from tests.brokers.environment import REDIS_SERVER, SERVERS
from tests.brokers.fetching import NoBroker, Programs, cache_folder, locked, make, run
from tests.brokers.suite import SUITE, unpack

CHECKOUT = Path(__file__).resolve().parents[2]
SERVER_PACKAGES = ("rabbitmq-server", "redis-server", "valkey-server", "beanstalkd")
PACKAGES = (*SERVER_PACKAGES, "redis-sentinel", "valkey-sentinel")
#: What programs and their start scripts need of a system.
BASE = (
    *("base-files", "base-passwd", "libc-bin", "dash", "bash", "coreutils", "sed", "grep", "mawk"),
    *("findutils", "hostname", "procps", "util-linux"),
)
FOLDERS = ("dev", "proc", "sys", "tmp", "run", "root", "var/lib", "var/log")
#: What scripts of the packages would have made.
LINKS = {"usr/bin/awk": "mawk", "usr/bin/sh": "dash"}
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
#: Not for those who only run programs.
UNUSED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info")
VERSIONS = "etc/greenconn-versions"
#: Runs a program in the root.  The same process becomes it, so that a signal reaches it.
ENTER = """\
#!/bin/sh
exec unshare {options} /bin/sh -c '
root=$1 shared=$2 checkout=$3; shift 3
PATH=$PATH:/usr/sbin:/sbin
for each in /dev /proc "$shared" "$checkout"; do
    mkdir -p "$root$each" && mount --rbind "$each" "$root$each" || exit 97
done
case $PWD in "$shared"/*) ;; *) cd / ;; esac
exec chroot "$root" /usr/bin/env -C "$PWD" PATH=/usr/local/bin:/usr/bin:/usr/sbin "$@"
' enter {root} {shared} {checkout} {program} "$@"
"""
#: What the tests run, and where it is in the root.
PROGRAMS = {
    **dict.fromkeys(("redis-server", "valkey-server", "beanstalkd", "epmd"), "usr/bin/{}"),
    **dict.fromkeys(
        ("rabbitmq-server", "rabbitmqctl", "rabbitmq-diagnostics"), "usr/lib/rabbitmq/bin/{}"
    ),
    "erl_call": "usr/lib/erlang/lib/erl_interface-*/bin/{}",
}


def is_wanted() -> bool:
    """Return whether the environment asks for newer servers."""
    return os.environ.get(SERVERS, "") == "newer"


def redis_server() -> str:
    """Return which of those that speak Redis' protocol the environment asks for."""
    return os.environ.get(REDIS_SERVER) or "redis"


def find(program: str, scratch: Path) -> Programs:
    """Find a server; the first time that takes a minute.  May switch.

    Arguments:
        scratch: a folder for what starts it.

    Raises:
        NoBroker: it is not to be had here.
    """
    root = _root(scratch)
    folder = scratch / "newer"
    if not folder.is_dir():
        made = Path(tempfile.mkdtemp(dir=scratch))
        for name, path in PROGRAMS.items():
            _write_program(made / name, root, path.format(name))
        run([str(made / "redis-server"), "--version"])  # says why it cannot, where it cannot
        made.rename(folder)
    return Programs(server=folder / program, folder=folder)


def _write_program(program: Path, root: Path, pattern: str) -> None:
    found = sorted(root.glob(pattern))
    if not found:
        raise NoBroker(f"no {pattern} in {root}")
    options = "-m" if os.geteuid() == 0 else "-rm"
    program.write_text(
        ENTER.format(
            options=options,
            root=shlex.quote(str(root)),
            shared=shlex.quote(os.path.realpath(tempfile.gettempdir())),
            checkout=shlex.quote(str(CHECKOUT)),
            program=shlex.quote(f"/{found[-1].relative_to(root)}"),
        )
    )
    program.chmod(0o755)


def versions(scratch: Path) -> dict[str, str]:
    """Return the version of each server's package.  May switch.

    Raises:
        NoBroker: they are not to be had here.
    """
    lines = (_root(scratch) / VERSIONS).read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines)


def _root(scratch: Path) -> Path:
    """Return the folder with what was unpacked, from the cache or made now."""
    root = cache_folder(scratch) / SUITE
    if not root.is_dir():
        if shutil.which("unshare") is None:
            raise NoBroker("newer servers run with unshare, which is missing here")
        with locked(root):
            if not root.is_dir():
                make(root, _unpack)
    return root


def _unpack(root: Path) -> None:
    """Fetch the packages and unpack them."""
    packages = unpack(root, (*BASE, *PACKAGES))
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for link, target in LINKS.items():
        if not (root / link).exists():
            (root / link).symlink_to(target)
    for file, text in FILES.items():
        (root / file).write_text(text)
    for name in UNUSED:
        shutil.rmtree(root / name, ignore_errors=True)
    lines = [f"{name} {packages[name]}" for name in SERVER_PACKAGES]
    (root / VERSIONS).write_text("\n".join(lines))
