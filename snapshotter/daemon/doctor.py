"""What lazy containers need on this machine, checked one by one, each with how to mend it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ipfs_store.errors import IpfsStoreError
from snapshotter.daemon.config import Config
from snapshotter.daemon.process import data_plane, running_pid
from snapshotter.dataplane.client import DataPlaneGone

if TYPE_CHECKING:
    from ipfs_store.nodes.kubo.health import KuboHealth

State = Literal["good", "note", "wrong"]
_PEER_TIMEOUT = 3.0  # seconds; a peer that is worth having answers within a tenth of one
_NOTHING = "bafkqaaa"  # the CID of no bytes: every trustless gateway has it
_SNAPSHOTTER = "ipfs"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    state: State
    about: str
    what: str
    mend: str = ""


def examine(config: Config) -> list[Finding]:
    """Every check; none of them changes anything, or hangs."""
    checks: tuple[Callable[[Config], Iterator[Finding]], ...] = (_kernel, _processes, _containerd, _node, _peers, _cache)
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check(config)
        except (IpfsStoreError, OSError) as error:
            hint = error.hint if isinstance(error, IpfsStoreError) else None
            findings.append(Finding("wrong", check.__name__.strip("_"), " ".join(str(error).split()), hint or ""))
    return findings


def _kernel(config: Config) -> Iterator[Finding]:
    from snapshotter.mounts.probe import probe

    release = os.uname().release
    root = os.geteuid() == 0
    if not root:
        yield Finding("note", "kernel", "not root: what needs mounts is not checked", "sudo ipfs-store doctor")
    if not Path("/dev/fuse").exists():
        yield Finding("wrong", "fuse", "there is no /dev/fuse", "modprobe fuse; in a container: --device /dev/fuse")
    else:
        yield Finding("good", "fuse", "/dev/fuse is there")
    if not root:
        return
    folder = Path(config.root) if Path(config.root).is_dir() else Path("/var/tmp")
    ability = probe(folder)
    if ability.native:
        yield Finding("good", "kernel", f"{release}: native mounts work ({ability.why})")
    elif config.mount_mode == "native":
        yield Finding(
            "wrong", "kernel", f"{release}: native mounts do not work ({ability.why})", 'mount_mode = "auto", or Linux 6.5 or later'
        )
    else:
        yield Finding(
            "note", "kernel", f"{release}: mounts are portable ({ability.why})", "modprobe erofs; Linux 6.5 or later makes them native"
        )


def _processes(config: Config) -> Iterator[Finding]:
    pid = running_pid(Path(config.root))
    if pid is None:
        yield Finding("wrong", "daemon", f"no ipfs-snapshotter runs on {config.root}", "systemctl start ipfs-snapshotter")
    else:
        yield Finding("good", "daemon", f"process {pid}, {config.socket}")
    plane = data_plane(config)
    try:
        holder = plane.status_of_holder()
    except DataPlaneGone:
        yield Finding("note" if pid is None else "wrong", "holder", "nobody holds the FUSE mount", "the daemon starts it; see its log")
        return
    yield Finding("good", "holder", f"process {holder['pid']}; {holder['served']} data planes have served")
    if not holder["resend"]:
        yield Finding(
            "note",
            "holder",
            "this kernel cannot send requests again: a data plane that dies costs those in flight an error",
            "Linux 6.9 or later",
        )
    if not holder["worker"]:
        yield Finding("wrong", "data plane", "none serves now; readers wait", "the holder's log says why")
    elif tuple(holder["command"]) != plane.launch.command():
        yield Finding(
            "note",
            "data plane",
            f"process {holder['worker']} runs with other settings or code than it would be started with",
            "restart the daemon",
        )
    else:
        yield Finding("good", "data plane", f"process {holder['worker']}")


def _containerd(config: Config) -> Iterator[Finding]:
    from snapshotter.containerd.connection import connect, require_snapshotter, server_version

    with connect(config.containerd.address) as connection:
        version = server_version(connection)
        require_snapshotter(connection, _SNAPSHOTTER)
    yield Finding("good", "containerd", f"{version} knows the snapshotter {_SNAPSHOTTER!r}")


def _node(config: Config) -> Iterator[Finding]:
    import trio

    from ipfs_store.nodes.kubo import KuboNode
    from ipfs_store.nodes.open import open_node

    async def look() -> tuple[str, KuboHealth | None]:
        async with open_node(config.node.spec, path=Path(config.node.path) if config.node.path else None, peers=()) as node:
            return node.name, await node.health() if isinstance(node, KuboNode) else None

    name, kubo = trio.run(look)
    if kubo is None:
        yield Finding("good", "node", name)
        return
    yield Finding(
        "good", "node", f"Kubo {kubo.version}, connected to {kubo.connected} peers, {kubo.bytes >> 20:,} of {kubo.limit >> 20:,} MiB"
    )
    if not kubo.connected:
        yield Finding("note", "node", "Kubo is connected to nobody: it gives what it has itself", "`ipfs swarm connect` or Peering.Peers")
    if kubo.bytes > kubo.limit * 9 // 10:
        yield Finding("note", "node", "Kubo's repository is nearly full", "`ipfs repo gc`, or a larger Datastore.StorageMax")


def _peers(config: Config) -> Iterator[Finding]:
    import httpx

    if not config.node.peers:
        yield Finding("note", "peers", "none are configured", "node.peers, unless the node finds them itself")
    for peer in config.node.peers:
        try:
            answer = httpx.get(f"{peer.rstrip('/')}/ipfs/{_NOTHING}?format=raw", timeout=_PEER_TIMEOUT)
        except httpx.HTTPError as error:
            yield Finding("wrong", "peers", f"{peer}: {error}", "does `ipfs-store serve`, or a gateway, run there?")
            continue
        if answer.status_code == httpx.codes.OK:
            yield Finding("good", "peers", f"{peer} answers in {answer.elapsed.total_seconds() * 1000:.0f} ms")
        else:
            yield Finding("wrong", "peers", f"{peer} answers {answer.status_code}: it is no trustless gateway", "name one in node.peers")


def _cache(config: Config) -> Iterator[Finding]:
    root = Path(config.root)
    there = next(path for path in (root, *root.parents) if path.exists())
    disk = shutil.disk_usage(there)
    free = f"{disk.free >> 20:,} MiB free on the disk of {there}"
    if disk.free < config.cache_reserve_bytes:
        yield Finding(
            "wrong", "disk", f"{free}, less than the reserve of {config.cache_reserve_bytes >> 20:,} MiB: nothing more is kept", "make room"
        )
    else:
        yield Finding("good", "disk", free)
    try:
        said = data_plane(config).status()
    except DataPlaneGone:
        return
    used = said.cache_bytes
    state: State = "note" if used > config.cache_bytes else "good"
    mend = "it is in use by mounts, and goes with them" if state == "note" else ""
    yield Finding(state, "cache", f"{used >> 20:,} of {config.cache_bytes >> 20:,} MiB", mend)
    if not said.no_verity:
        yield Finding("good", "bit flips", "files of the cache are sealed by fs-verity: a wrong byte is an I/O error")
    elif config.cache.verify:
        yield Finding("good", "bit flips", f"no fs-verity: {said.no_verity}; cache.verify hashes every file once a week")
    else:
        yield Finding("note", "bit flips", f"no fs-verity: {said.no_verity}", "cache.verify = true hashes every file once a week")
