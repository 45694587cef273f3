"""Packages of another system than this one, such as a later Debian, unpacked into a folder.

Nothing is installed, and no script of a package runs.  apt fetches the packages, those of Debian from
the mirror that this machine uses, and checks their signatures.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.brokers.fetching import NoBroker, run

SUITE = "testing"
APT = """\
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Acquire::Languages "none";
Acquire::Retries "3";
APT::Install-Recommends "false";
APT::Keep-Downloaded-Packages "true";
Binary::apt-get::Keep-Downloaded-Packages "true";
APT::Sandbox::User "";
Debug::NoLocking "true";
"""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True)
class Source:
    """Where packages come from: a suite of a system, at a mirror.

    Arguments:
        components: their names, separated by spaces.
        keyring: the file with the keys that sign them; None: those that apt trusts.
    """

    site: str
    suite: str
    components: str
    keyring: Path | None


def later_debian() -> Source:
    """Return the source of a later Debian's packages.

    Raises:
        NoBroker: this machine has no mirror of Debian.
    """
    return Source(_mirror(), SUITE, "main", KEYRING if os.access(KEYRING, os.R_OK) else None)


def unpack(root: Path, names: Sequence[str], source: Source | None = None) -> dict[str, str]:
    """Fetch packages with all that they depend on, and unpack them.

    Arguments:
        root: an empty folder.
        source: where they come from; None: a later Debian.

    Returns:
        the name of each package, and its version.

    Raises:
        NoBroker: they are not to be had here.
    """
    for tool in ("apt-get", "dpkg-deb", "tar"):
        if shutil.which(tool) is None:
            raise NoBroker(f"packages are unpacked with {tool}, which is missing here")
    with tempfile.TemporaryDirectory(prefix="greenconn-apt-") as folder:
        packages = _download(names, source or later_debian(), Path(folder))
        # The links from /bin to /usr/bin come first.
        packages.sort(key=lambda each: not each.name.startswith("base-files_"))
        for package in packages:
            _extract(package, root, Path(folder, "data.tar"))
    return dict(package.name.split("_")[:2] for package in packages)


def _extract(package: Path, root: Path, archive: Path) -> None:
    """Unpack the files of a package; folders that are links here stay links."""
    command = ["sh", "-c", 'dpkg-deb --fsys-tarfile "$1" > "$2"', "sh", str(package), str(archive)]
    run(command)
    # Devices and files of other owners are not to be made; what is missed is none of the programs.
    options = ["--keep-directory-symlink", "--no-same-owner", "--no-same-permissions"]
    run(["tar", "-x", *options, "-C", str(root), "-f", str(archive)])


def _download(names: Sequence[str], source: Source, folder: Path) -> list[Path]:
    """Fetch packages and all that they depend on, with an apt of their own."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    signed = "" if source.keyring is None else f"signed-by={source.keyring} "
    architecture = run(["dpkg", "--print-architecture"]).strip()
    place = f"{source.site} {source.suite} {source.components}"
    (folder / "sources.list").write_text(f"deb [{signed}arch={architecture}] {place}\n")
    (folder / "apt.conf").write_text(APT.format(folder=folder))
    environment = {"APT_CONFIG": str(folder / "apt.conf")}
    run(["apt-get", "-qq", "update"], env=environment)
    fetch = ["-qq", "-y", "-o", "DPkg::Post-Invoke=", "--download-only", "--no-install-recommends"]
    run(["apt-get", *fetch, "install", *names], env=environment)
    return sorted(folder.glob("cache/archives/*.deb"))


def _mirror() -> str:
    """Return the site of this machine's own Debian packages.

    Raises:
        NoBroker: it has none.
    """
    wanted = ["Created-By: Packages", "Origin: Debian", "Label: Debian"]
    sites = set(run(["apt-get", "indextargets", "--format", "$(SITE)", *wanted]).split())
    if not sites:
        raise NoBroker("newer packages come from a mirror of Debian, and apt knows none here")
    return min(sites)
