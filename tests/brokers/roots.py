"""Programs in a root of their own: packages of another system, which need its libraries.

Each program runs in a mount namespace of its own, with that root as ``/``, on this machine's network,
and with this machine's temporary folder and the checkout.  Without root that takes a user namespace.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from pathlib import Path

from tests.brokers.fetching import NoBroker

CHECKOUT = Path(__file__).resolve().parents[2]
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
PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin
exec chroot "$root" /bin/sh -c "cd \\"\\$0\\" && exec \\"\\$@\\"" "$PWD" "$@"
' enter {root} {shared} {checkout} {program} "$@"
"""


def check_tools() -> None:
    """Check that a program can be run in a root.

    Raises:
        NoBroker: it cannot.
    """
    if shutil.which("unshare") is None:
        raise NoBroker("packages of another system run with unshare, which is missing here")


def furnish(root: Path) -> None:
    """Add to a root what the scripts of its packages would have made."""
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for link, target in LINKS.items():
        if not (root / link).exists():
            (root / link).symlink_to(target)
    for file, text in FILES.items():
        (root / file).write_text(text)
    for name in UNUSED:
        shutil.rmtree(root / name, ignore_errors=True)


def write_program(program: Path, root: Path, pattern: str) -> None:
    """Write a program that runs the one of a root, found by a pattern.

    Raises:
        NoBroker: the root has none.
    """
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
