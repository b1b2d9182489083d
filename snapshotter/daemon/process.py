"""The running daemon: its lock, its data plane, its socket, its end."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ipfs_store import __version__
from ipfs_store.errors import InvalidInput, IpfsStoreError, StorageFailed
from snapshotter.daemon.config import Config
from snapshotter.dataplane.client import DataPlane, Launch
from snapshotter.holder import notify
from snapshotter.mounts.native import binds_of, unmount_below

if TYPE_CHECKING:
    from snapshotter.service.snapshots import Snapshotter

_log = logging.getLogger(__name__)
_GRACE = 10.0  # seconds that requests have to end when the daemon does
_KEPT = "fuse"
"""The name of the FUSE descriptor in systemd's descriptor store."""
_WATCH = 2.0  # seconds between looks at whether the daemon is to end, while it waits for the data plane's end


def data_plane(config: Config, kept: int | None = None) -> DataPlane:
    """The data plane of this configuration, running or not. ``kept``: see `DataPlane`."""
    root = Path(config.root)
    return DataPlane(
        Launch(
            mountpoint=root / "layers",
            control=root / "dataplane.sock",
            cache=root / "cache",
            node=config.node.spec,
            node_path=Path(config.node.path) if config.node.path else None,
            peers=tuple(config.node.peers),
            node_timeout=config.node.timeout,
            give_up=config.dataplane.give_up,
            cache_max_bytes=config.cache_bytes,
            cache_reserve=config.cache_reserve_bytes,
            cache_scope=config.cache.scope,
            verify_cache=config.cache.verify,
            read_ahead_kib=config.dataplane.read_ahead_kib,
            abandon=config.dataplane.abandon,
            log_level=config.log_level,
            code=code_identity(),
            holder_code=code_identity("snapshotter.holder"),
        ),
        kept=kept,
    )


def run_daemon(config: Config) -> None:
    """Serve until SIGTERM or SIGINT. The data plane goes on, so containers keep their files; `stop_all` ends it too.

    Raises InvalidInput (no root, another daemon runs), StorageFailed, Unavailable (no FUSE).
    """
    if os.geteuid() != 0:
        raise InvalidInput("the snapshotter mounts file systems and needs root", hint="sudo ipfs-snapshotter ...")
    if not Path("/dev/fuse").exists():
        raise InvalidInput("there is no /dev/fuse, which layers are mounted by", hint="modprobe fuse; in a container: --device /dev/fuse")
    root = Path(config.root)
    with _locked(root), contextlib.ExitStack() as at_end:
        from snapshotter.containerd.connection import connect
        from snapshotter.daemon.metrics import Metrics
        from snapshotter.mounts.choice import choose
        from snapshotter.service.diff.differ import Differ
        from snapshotter.service.grpc import start_server
        from snapshotter.service.snapshots import Snapshotter

        plane = data_plane(config, notify.kept_descriptors().get(_KEPT))
        started = plane.start()
        _keep_with_systemd(plane)
        ended = threading.Event()
        try:
            choice = choose(config.mount_mode, plane, root, timeout=config.dataplane.mount_timeout)
            snapshotter = Snapshotter(
                root, choice.mounter, data=choice.data, per_namespace=config.cache.scope == "namespace", xino=config.xino
            )
            differ = Differ(snapshotter, root / "scratch", lambda namespace: connect(config.containerd.address, namespace))
            if config.metrics:
                at_end.callback(
                    Metrics(config.metrics, plane, lambda: len(snapshotter.select()), "native" if choice.data else "portable").close
                )
            server = start_server(snapshotter, Path(config.socket), differ)
        except BaseException:
            if started:  # it would hold a mount that nobody asked for
                plane.stop()
            raise
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        keeper = threading.Thread(target=_keep, args=(plane, snapshotter, ended), name="keeper")
        keeper.start()
        _log.info("serving snapshots on %s; state in %s", config.socket, root)
        _tell_systemd("READY=1")
        ended.wait()
        _tell_systemd("STOPPING=1")
        _log.info("stopping; mounted layers stay for the containers that use them")
        server.stop(_GRACE).wait()
        keeper.join()
        snapshotter.close()
        Path(config.socket).unlink(missing_ok=True)


def running_pid(root: Path) -> int | None:
    """The process id of the daemon on ``root``, None if there is none."""
    try:
        with (root / "lock").open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or b"0")
    except FileNotFoundError:
        pass
    return None


def stop_all(config: Config, *, unmount: bool, force: bool = False) -> None:
    """End the daemon and, with ``unmount``, the data plane and its mount; raises InvalidInput where containers still use layers."""
    root = Path(config.root)
    if unmount and not force:
        users = _overlays_on(root)
        if users:
            raise InvalidInput(
                f"{len(users)} mounts still use layers, such as {users[0]}",
                hint="stop the containers first, or say --force (their files go away)",
            )
    pid = running_pid(root)
    if pid:
        handle = os.pidfd_open(pid)
        try:
            os.kill(pid, signal.SIGTERM)
            import select

            if not select.select([handle], [], [], _GRACE + 5)[0]:
                raise StorageFailed(f"the daemon (process {pid}) does not end", hint=f"kill -9 {pid}")
        finally:
            os.close(handle)
    if unmount:
        unmount_below([root / "snapshots", root / "images", root / "scratch"])
        data_plane(config).stop()
        Path(config.socket).unlink(missing_ok=True)


def _keep(plane: DataPlane, snapshotter: Snapshotter, ended: threading.Event) -> None:
    """Mount remote layers again, now and whenever the holder had to be replaced."""
    _restore(plane, snapshotter)
    while not ended.is_set():
        if not plane.wait_gone(_WATCH) or ended.is_set():
            continue
        _log.error("the holder of the FUSE connection ended; starting another")
        try:
            plane.start()
            _keep_with_systemd(plane)
        except IpfsStoreError as error:
            _log.error("%s", error.message)
            ended.wait(_WATCH)
            continue
        _restore(plane, snapshotter)


def _restore(plane: DataPlane, snapshotter: Snapshotter) -> None:
    """What the database has is mounted; what it does not have, since nobody heard of its end, is let go of."""
    registered = plane.registered()  # asked first: whatever is mounted from now on has been in the database before
    known = {snapshot.id for snapshot in snapshotter.select()}
    for layer in registered:
        if layer not in known:
            try:
                plane.unmount(layer)
            except IpfsStoreError as error:
                _log.warning("layer %d belongs to no snapshot and is still mounted: %s", layer, error.message)
    snapshotter.restore()


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[IO[bytes]]:
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o711)
        file = (root / "lock").open("a+b")
    except OSError as error:
        raise StorageFailed(f"the folder {root} cannot be used: {error}", hint="name another: root = ... in the configuration") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid = file.read().decode(errors="replace")
            raise InvalidInput(f"another ipfs-snapshotter (process {pid}) runs on {root}", hint="`ipfs-snapshotter stop` ends it") from None
        try:
            file.truncate(0)
            file.write(str(os.getpid()).encode())
            file.flush()
        except OSError as error:
            raise StorageFailed(f"{root} cannot be written: {error}", hint="is the disk full?") from error
        yield file


def _overlays_on(root: Path) -> list[str]:
    """Mount points of overlays whose lower directories are our layers."""
    needle = f"{root}/layers/"
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4]
        # Those below are roots that we mounted ourselves: whether somebody uses them is seen by their binds.
        if point.startswith(f"{root}/"):
            continue
        if after.startswith("overlay ") and (needle in after or _relative_lower(after, root)):
            found.append(point)
    return found + [str(point) for point in binds_of(root / "snapshots")]


def _relative_lower(options: str, root: Path) -> bool:
    # containerd shortens long lists of lower directories by mounting from the folder that they share.
    return f"upperdir={root}/" in options and "lowerdir=layers/" in options


def _tell_systemd(state: str, *descriptors: int) -> None:
    try:
        notify.notify(state, *descriptors)
    except OSError as error:
        _log.warning("systemd was not told %s: %s", state.splitlines()[0], error)


def _keep_with_systemd(plane: DataPlane) -> None:
    """Have systemd keep the FUSE descriptor too, if it is there: then the connection outlives even the end of all our processes."""
    if not os.environ.get("NOTIFY_SOCKET"):
        return
    descriptor = plane.share()
    try:
        # Only one is needed, and the one before may be of a connection that has ended.
        _tell_systemd(f"FDSTOREREMOVE=1\nFDNAME={_KEPT}")
        _tell_systemd(f"FDSTORE=1\nFDNAME={_KEPT}", descriptor)
    finally:
        os.close(descriptor)


def code_identity(*packages: str) -> str:
    """Names the code that is installed (of ``packages``; of all): version, and what an upgrade in place changes of its files."""
    seen = hashlib.sha256()
    for package in packages or ("ipfs_store", "snapshotter"):
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations
        for folder in spec.submodule_search_locations:
            for path in sorted(Path(folder).rglob("*.py")):
                status = path.stat()
                seen.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return f"{__version__}-{seen.hexdigest()[:16]}"
