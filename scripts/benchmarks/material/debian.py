"""Debian root file systems of chosen packages as tars, kept in /var/cache/ipfs-store/bench under a name that says what they are made of."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("IPFS_STORE_BENCH_CACHE", "/var/cache/ipfs-store/bench"))
# mmdebstrap clamps times to it, so the same packages give the same tar.
_EPOCH = "1793491200"  # 2026-11-01: files keep the times of their packages


@dataclass(frozen=True)
class Tree:
    """A recipe."""

    name: str
    packages: tuple[str, ...]
    updated: bool = False
    """With the updates of bookworm-updates and bookworm-security; without, as the last point release had them."""

    @property
    def path(self) -> Path:
        """Where its tar is, or will be."""
        key = hashlib.sha256(repr((self.packages, self.updated, _EPOCH)).encode()).hexdigest()[:12]
        return CACHE / f"{self.name}-{key}.tar"


def made(tree: Tree) -> Path:
    """The tar of ``tree``, made by mmdebstrap if it is not there: half a minute, and root."""
    if tree.path.exists():
        return tree.path
    debs = CACHE / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        unfinished = Path(folder) / "root.tar"
        subprocess.run(
            [
                "mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(tree.packages)}",
                # Packages are kept: ten trees of one base would be downloaded ten times.
                "--skip=essential/unlink",
                '--setup-hook=mkdir -p "$1"/var/cache/apt/archives/', f"--setup-hook=sync-in {debs} /var/cache/apt/archives/",
                f"--customize-hook=sync-out /var/cache/apt/archives {debs}",
                "bookworm", str(unfinished), *_sources(updated=tree.updated),
            ],
            check=True,
            env={**os.environ, "SOURCE_DATE_EPOCH": _EPOCH},
        )  # fmt: skip
        unfinished.rename(tree.path)
    return tree.path


def _sources(*, updated: bool) -> list[str]:
    """Lines of sources.list, from where this machine has its own packages; raises LookupError where it has not all of them."""
    wanted = ["bookworm", "bookworm-updates", "bookworm-security"] if updated else ["bookworm"]
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages", "Component: main"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    places = dict(line.split() for line in listed.splitlines())
    if missing := set(wanted) - places.keys():
        raise LookupError(f"apt has no {', '.join(sorted(missing))} here: this benchmark is made of Debian 12's packages")
    return [f"deb {places[suite]} {suite} main" for suite in wanted]


_COMMON = ("ca-certificates", "curl", "openssl", "perl")
BEFORE = Tree("upgrade-before", (*_COMMON, "python3", "nginx"))
AFTER = Tree("upgrade-after", (*_COMMON, "python3", "nginx"), updated=True)
APPLICATIONS = (
    Tree("application-nodejs", (*_COMMON, "nodejs")),
    Tree("application-python", (*_COMMON, "python3-flask", "python3-sqlalchemy")),
)
LARGE = Tree("large", (*_COMMON, "python3", "nginx", "git", "build-essential", "python3-numpy", "nodejs", "ruby", "vim", "mercurial"))
"""790 MB and 26,000 entries."""
_CHAIN = (
    ("python3", "nginx", "git"), ("python3", "nginx", "git", "sqlite3"), ("python3", "nginx-light", "git", "sqlite3"),
    ("python3", "nginx-light", "git", "sqlite3", "jq"), ("python3", "nginx-light", "sqlite3", "jq", "vim-tiny"),
    ("python3", "nginx-light", "sqlite3", "jq", "nano", "rsync"), ("python3", "nginx-light", "sqlite3", "jq", "nano", "rsync"),
    ("python3", "python3-requests", "nginx-light", "sqlite3", "jq", "nano", "rsync"),
    ("python3", "python3-requests", "nginx-light", "sqlite3", "jq", "rsync", "redis-server"),
)  # fmt: skip
CHAIN = (
    BEFORE,
    # Version 8 adds nothing: it takes the security updates, as all after it.
    *(Tree(f"chain-{number}", (*_COMMON, *packages), updated=number >= 8) for number, packages in enumerate(_CHAIN, 2)),
)
