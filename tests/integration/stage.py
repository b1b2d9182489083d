"""Everything for a lazy pull: a pushing node that serves, a snapshotter daemon with a node of its own, a containerd."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from snapshotter.containerd.protos import snapshots_pb2, snapshots_pb2_grpc
from tests.containerd import PrivateContainerd
from tests.containerd_client.images import APPLETS
from tests.patience import PATIENCE, until
from tests.requirements import require_fuse, require_tool
from tests.service.served import mounted
from tests.vectors import make_input

BIN = Path(sys.executable).parent
HIDDEN = ("IPFS_STORE_NODE", "IPFS_STORE_PEER", "IPFS_STORE_PEERS", "IPFS_PATH")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in HIDDEN}


def docker_archive(path: Path, layers: Sequence[bytes], **config: object) -> Path:
    """What ``docker save`` writes."""
    document = json.dumps(
        {
            "architecture": subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True).stdout.strip() or "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], **config},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]},
        }
    ).encode()
    files = {f"{number}/layer.tar": layer for number, layer in enumerate(layers)}
    manifest = [{"Config": "config.json", "RepoTags": ["test/vector:1"], "Layers": list(files)}]
    with tarfile.open(path, "w") as tar:
        for name, data in {"config.json": document, **files, "manifest.json": json.dumps(manifest).encode()}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def vector_layers(work: Path) -> list[bytes]:
    """A busybox below, with what the vectors' layer removes and hides; the vectors' layer above."""
    below = io.BytesIO()
    with tarfile.open(fileobj=below, mode="w") as tar:
        for name in ("bin", "proc", "sys", "dev", "etc", "var", "var/opaque", "var/opaque/sub"):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, 1_500_000_000
            tar.addfile(info)
        busybox = require_tool("busybox").read_bytes()
        for name, data in {
            "bin/busybox": busybox,
            "var/gone": b"removed above",
            "var/opaque/old": b"hidden",
            "var/opaque/sub/x": b"",
            "etc/hostname": b"old\n",
        }.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), 0o755, 1_500_000_000
            tar.addfile(info, io.BytesIO(data))
        for applet in (*APPLETS, "find", "md5sum", "tar"):
            info = tarfile.TarInfo(f"bin/{applet}")
            info.type, info.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(info)
    make_input.main(str(work / "input.tar"))
    return [below.getvalue(), (work / "input.tar").read_bytes()]


MODES = ("portable", "native")


class Stage:
    """Folders and processes of one test module; see `stage`."""

    def __init__(self, root: Path, mode: str) -> None:
        self.root = root
        self.mode = mode
        root.mkdir(exist_ok=True)
        self.pushing = ["--node", "embedded", "--node-path", str(root / "pushing")]
        self.pulling = ["--node", "embedded", "--node-path", str(root / "pulling")]
        self.peer = ""
        self.metrics = ""
        self.cache = "10GiB"
        self.scope = "machine"
        self.config = root / "snapshotter.toml"
        self.socket = root / "ipfs.sock"
        self._ports = contextlib.ExitStack()
        self._port = self.reserve_port()
        self._serving: subprocess.Popen[bytes] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    def cli(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """``ipfs-store ARGUMENTS``, whatever comes of it."""
        return subprocess.run([BIN / "ipfs-store", *arguments], capture_output=True, text=True, env=ENVIRONMENT)

    def must(self, *arguments: str | Path) -> str:
        """Its output; it has to succeed."""
        done = self.cli(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def push(self, source: Path, *options: str) -> dict[str, Any]:
        """Push from the pushing node."""
        return json.loads(self.must(*self.pushing, "ipfs-push", "--json", *options, source))  # type: ignore[no-any-return]

    def rpull(self, containerd: PrivateContainerd, cid: str, *options: str) -> dict[str, Any]:
        """Pull with the second node."""
        out = self.must(*self.pulling, "--peer", self.peer, "rpull", "--json", "--address", containerd.address, *options, cid)
        return json.loads(out)  # type: ignore[no-any-return]

    def reserve_port(self) -> int:
        """A port that nobody else is given while this stage is up, and that ours, who allow for such a neighbour, may listen on again and again."""
        kept = self._ports.enter_context(socket.socket())
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        return int(kept.getsockname()[1])

    def serve(self) -> None:
        """Serve the pushing node's blocks, always on one port."""
        command = [BIN / "ipfs-store", *self.pushing, "serve", "--listen", f"127.0.0.1:{self._port}"]
        self._serving = subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT)
        assert self._serving.stdout is not None
        for line in self._serving.stdout:
            if b"http://" in line:
                self.peer = "http://" + line.decode().split("http://", 1)[1].split()[0]
                return
        raise AssertionError("the pushing node does not serve")

    def stop_serving(self) -> None:
        """As if the machine had gone."""
        assert self._serving is not None and self._serving.stdout is not None
        self._serving.kill()
        self._serving.wait()
        self._serving.stdout.close()
        self._serving = None

    def daemon(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``ipfs-snapshotter --config ... ARGUMENTS``."""
        command = [BIN / "ipfs-snapshotter", "--config", self.config, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)

    def status(self) -> dict[str, Any]:
        """What the snapshotter says."""
        done = self.daemon("status", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def start_daemon(self, *, give_up: float = 60, containerd: str = "/nowhere", more: str = "") -> None:
        """Start it and wait for its socket. ``containerd``: where layers go that are made of snapshots; ``more``: of the configuration."""
        self.config.write_text(
            f'root = "{self.root}/snapshotter"\nsocket = "{self.socket}"\nmount_mode = "{self.mode}"\nmetrics = "{self.metrics}"\n[dataplane]\ngive_up = {give_up}\n'
            f'[cache]\nmax_bytes = "{self.cache}"\nscope = "{self.scope}"\n'
            f'[node]\nspec = "embedded"\npath = "{self.root}/pulling"\npeers = ["{self.peer}"]\ntimeout = 5\n'
            f'[containerd]\naddress = "{containerd}"\n{more}'
        )
        with (self.root / "daemon.log").open("ab") as log:
            self._daemon = subprocess.Popen([BIN / "ipfs-snapshotter", "--config", self.config], stdout=log, stderr=log, env=ENVIRONMENT)
        daemon = self._daemon
        until(lambda: self.socket.exists() or daemon.poll() is not None, self.log)
        assert daemon.poll() is None, self.log()

    def end_daemon(self, number: int = signal.SIGTERM) -> None:
        """Signal it and wait."""
        assert self._daemon is not None
        self._daemon.send_signal(number)
        self._daemon.wait(PATIENCE)
        self._daemon = None
        if number == signal.SIGKILL:
            self.socket.unlink()  # so that waiting for the next one's is waiting for the next one

    def ended(self) -> None:
        """The daemon was ended by other means."""
        assert self._daemon is not None
        assert self._daemon.wait(PATIENCE) == 0
        self._daemon = None

    def log(self) -> str:
        """What daemon and data plane wrote."""
        return (self.root / "daemon.log").read_text(errors="replace")

    def close(self) -> None:
        """End everything."""
        if self._daemon is not None:
            self.end_daemon()
        if self.config.exists():
            stopped = self.daemon("stop", "--unmount", "--force")
            assert stopped.returncode == 0, stopped.stderr
        if self._serving is not None:
            self.stop_serving()
        self._ports.close()


@contextlib.contextmanager
def stage(root: Path, mode: str = "portable") -> Iterator[Stage]:
    """A stage in ``root``; whatever happens, nothing of it stays mounted or running."""
    require_fuse()
    made = Stage(root, mode)
    try:
        yield made
    finally:
        made.close()
        left = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {root}/" in line]
        for point in sorted(left, key=len, reverse=True):
            subprocess.run(["umount", "-l", point], check=False)
    assert not left, f"still mounted at the end: {left}"


@contextlib.contextmanager
def view(containerd: PrivateContainerd, snapshotter: str, chain_id: str, target: Path) -> Iterator[Path]:
    """A committed snapshot, mounted at ``target``."""
    key = f"look-{snapshotter}-{target.name}"
    # A root of containerd's collection from its first moment: one that runs after a pull would take it.
    labels = {"containerd.io/gc.root": "test"}
    with grpc.insecure_channel(f"unix:{containerd.address}") as channel:
        snapshots = snapshots_pb2_grpc.SnapshotsStub(channel)
        namespace = (("containerd-namespace", "default"),)
        request = snapshots_pb2.ViewSnapshotRequest(snapshotter=snapshotter, key=key, parent=chain_id, labels=labels)
        mounts = list(snapshots.View(request, metadata=namespace).mounts)
        try:
            with mounted(mounts, target) as root:
                yield root
        finally:
            snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=key), metadata=namespace)


@contextlib.contextmanager
def started(on_stage: Stage, version: str, extra: str = "") -> Iterator[PrivateContainerd]:
    """A daemon, and a containerd that knows it."""
    folder = Path(tempfile.mkdtemp(prefix="ctrd-", dir="/tmp"))
    folder.chmod(0o711)  # the root of a user namespace has to get to its bundle
    try:
        on_stage.start_daemon(containerd=str(folder / "c.sock"))
        with PrivateContainerd(folder, version, {"ipfs": on_stage.socket}, extra) as containerd:
            containerd.wait_for_snapshotter("ipfs")
            yield containerd
            containerd.run("image", "rm", "--sync", "lazy", "eager")
    finally:
        on_stage.end_daemon()
        shutil.rmtree(folder)
