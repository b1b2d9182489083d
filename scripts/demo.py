"""The demonstration behind scripts/demo: push, forget, pull lazily from a second node, run twice, print what it took."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.table import Table

BIN = Path(sys.executable).parent
CACHE = Path(os.environ.get("IPFS_STORE_CACHE", "/var/cache/ipfs-store"))
PYTHON_COMMAND = ("python3", "-c", "import json, platform; print('hello from', platform.platform(), json.dumps({'lazy': True}))")


class DemoFailed(click.ClickException):
    """A step that did not work; the message has the last lines of what it printed."""


def say(text: str) -> None:
    click.echo(f"demo: {text}", err=True)


class Interruption:
    """SIGINT and SIGTERM as KeyboardInterrupt, but not between a process's birth and the moment that we know of it."""

    def __init__(self) -> None:
        self._postponed = 0
        self._came = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take)

    def _take(self, number: int, _: FrameType | None) -> None:
        self._came = True
        if not self._postponed:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def postponed(self) -> Iterator[None]:
        self._postponed += 1
        try:
            yield
        finally:
            self._postponed -= 1
            if self._came and not self._postponed:
                raise KeyboardInterrupt

    def ignore(self) -> None:
        """From here on the end is under way."""
        self._postponed += 1


INTERRUPTION = Interruption()


def run(command: Sequence[str | Path]) -> str:
    with contextlib.ExitStack() as stack:
        with INTERRUPTION.postponed():
            process = subprocess.Popen(
                [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        out, err = process.communicate()
    if process.returncode:
        tail = b"\n".join((err or out).strip().splitlines()[-5:]).decode(errors="replace")
        raise DemoFailed(f"{' '.join(map(str, command))[:200]}\nended with {process.returncode}:\n{tail}")
    return out.decode()


def debian_image() -> Path:
    """A Docker archive of one layer: Debian (or this machine's Ubuntu) with Python; made once and kept."""
    release = dict(line.rstrip().split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    suite = release.get("VERSION_CODENAME", "bookworm").strip('"')
    archive = CACHE / "demo" / f"{suite}-python.tar"
    if archive.exists():
        return archive
    archive.parent.mkdir(parents=True, exist_ok=True)
    say(f"making an image of {suite} with Python (half a minute, once)")
    with tempfile.TemporaryDirectory(dir=archive.parent) as work:
        layer = Path(work, "layer.tar")
        run(["mmdebstrap", "--quiet", "--variant=minbase", "--include=python3", suite, layer])
        with layer.open("rb") as file:
            diff_id = hashlib.file_digest(file, "sha256").hexdigest()
        arch = run(["dpkg", "--print-architecture"]).strip()
        config = json.dumps(
            {
                "architecture": {"armhf": "arm"}.get(arch, arch),
                "os": "linux",
                "config": {"Cmd": ["python3"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
            }
        ).encode()
        config_name = f"{hashlib.sha256(config).hexdigest()}.json"
        manifest = json.dumps([{"Config": config_name, "RepoTags": ["demo/python:latest"], "Layers": ["layer.tar"]}]).encode()
        made = Path(work, "image.tar")
        with tarfile.open(made, "w") as tar:
            for name, data in ((config_name, config), ("manifest.json", manifest)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            tar.add(layer, "layer.tar")
        made.rename(archive)
    return archive


class Stage:
    """Everything that the demo starts or makes, ended and removed in the opposite order."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="ipfs-store-demo-", dir=os.environ.get("TMPDIR", "/var/tmp")))
        self._stack = contextlib.ExitStack()
        self._stack.callback(shutil.rmtree, self.root)

    def close(self) -> None:
        self._stack.close()

    def daemon(self, name: str, command: Sequence[str | Path], *, ready: Path | str) -> str:
        """Start a daemon and wait until the socket ``ready`` exists, or a line of its output starts with that text (returned)."""
        # Sessions of their own: Ctrl-C reaches the demonstration alone, which then ends them in order.
        log = self.root / f"{name}.log"
        with log.open("wb") as output, INTERRUPTION.postponed():
            process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
            self._stack.callback(self._end, name, process)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            if isinstance(ready, Path) and ready.exists():
                return ""
            if isinstance(ready, str):
                for line in log.read_text(errors="replace").splitlines():
                    if ready in line:
                        return line
            time.sleep(0.02)
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise DemoFailed(f"{name} did not start:\n{tail}")

    def on_close(self, what: Any, *arguments: Any) -> None:
        self._stack.callback(what, *arguments)

    @staticmethod
    def _end(name: str, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            say(f"{name} did not stop in 20 s; killed")
            process.kill()
            process.wait()


def unmount_below(root: Path) -> None:
    """Whatever is still mounted below ``root``, deepest first, so that nothing is left if a daemon was killed."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted((p for p in points if p.startswith(f"{root}/")), key=len, reverse=True):
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)


@contextlib.contextmanager
def seconds(into: dict[str, float], name: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    into[name] = time.monotonic() - start


def containerd_config(root: Path, snapshotter: Path) -> str:
    # CRI and NRI are switched off: a second containerd on the machine must not take their sockets.
    return f"""version = 2
root = "{root}/containerd/root"
state = "{root}/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
  address = "{root}/containerd.sock"
[ttrpc]
  address = "{root}/containerd.sock.ttrpc"
[proxy_plugins.ipfs]
  type = "snapshot"
  address = "{snapshotter}"
"""


def snapshotter_config(root: Path, peer: str) -> str:
    return f"""root = "{root}/snapshotter"
socket = "{root}/ipfs.sock"
[node]
spec = "embedded"
path = "{root}/pulling-node"
peers = ["{peer}"]
"""


def demonstrate(stage: Stage, image: str, command: Sequence[str]) -> None:
    root, took = stage.root, dict[str, float]()
    cli = [BIN / "ipfs-store"]
    pushing = [*cli, "--node", "embedded", "--node-path", root / "pushing-node"]
    pulling = [*cli, "--node", "embedded", "--node-path", root / "pulling-node"]

    say(f"pushing {image}")
    pushed = json.loads(run([*pushing, "ipfs-push", "--json", image]))
    took |= pushed["seconds"]
    say(f"image CID {pushed['cid']}")
    served = stage.daemon("pushing-node", [*pushing, "serve", "--listen", "127.0.0.1:0"], ready="http://")
    peer = "http://" + served.split("http://", 1)[1].split()[0]

    stage.on_close(unmount_below, root)
    config = root / "snapshotter.toml"
    config.write_text(snapshotter_config(root, peer))
    snapshotter = [BIN / "ipfs-snapshotter", "--config", config]
    stage.daemon("snapshotter", snapshotter, ready=root / "ipfs.sock")
    stage.on_close(lambda: run([*snapshotter, "stop", "--unmount"]))
    (root / "containerd.toml").write_text(containerd_config(root, root / "ipfs.sock"))
    stage.daemon("containerd", ["containerd", "--config", root / "containerd.toml"], ready=root / "containerd.sock")

    containerd = ["--address", str(root / "containerd.sock")]
    stage.on_close(end_tasks, containerd)

    say("the image is now on the pushing node only; pulling it from a second one")
    with seconds(took, "pull"):
        run([*pulling, "--peer", peer, "rpull", *containerd, "--name", "demo", pushed["cid"]])
    for turn in ("first run", "second run"):
        with seconds(took, turn):
            printed = run(["ctr", *containerd, "run", "--rm", "--snapshotter", "ipfs", "demo", f"demo-{turn[0]}", *command])
        click.echo(f"{turn}: {printed.strip()}")
    status = json.loads(run([*snapshotter, "status", "--json"]))
    run(["ctr", *containerd, "image", "rm", "--sync", "demo"])
    print_table(pushed, took, status)


def end_tasks(containerd: Sequence[str]) -> None:
    """End containers that an interruption left; they would outlive their containerd."""
    for name in run(["ctr", *containerd, "tasks", "ls", "-q"]).split():
        run(["ctr", *containerd, "tasks", "rm", "--force", name])


def print_table(pushed: dict[str, Any], took: dict[str, float], status: dict[str, Any]) -> None:
    layers = status["layers"]
    fetched = sum(layer["bytes_fetched"] for layer in layers)
    table = Table(show_header=False)
    for step in ("convert", "push", "pull", "first run", "second run"):
        table.add_row(step, f"{took[step]:.2f} s")
    table.add_row("image", f"{pushed['bytes']:,} bytes")
    table.add_row("fetched", f"{fetched:,} bytes ({fetched / max(pushed['bytes'], 1):.0%})")
    # Natively, the kernel opens what came along with a neighbour without asking anybody.
    asked = "at least " if any(layer["mode"] == "native" for layer in layers) else ""
    table.add_row("files touched", f"{asked}{sum(layer['files_touched'] for layer in layers):,}")
    Console().print(table)


@click.command()
@click.option("--image", help="An archive, a layout or a reference, instead of a Debian made here.", metavar="ARCHIVE|REFERENCE")
@click.argument("command", nargs=-1)
def main(image: str | None, command: tuple[str, ...]) -> None:
    """Push an image into IPFS, pull it lazily from a second node, run COMMAND in it twice, and print what it took."""

    source = image or str(debian_image())
    stage = Stage()
    try:
        demonstrate(stage, source, command or (PYTHON_COMMAND if image is None else ("true",)))
    except KeyboardInterrupt:
        say("stopped; cleaning up")
        raise SystemExit(130) from None
    finally:
        INTERRUPTION.ignore()  # a second Ctrl-C must not leave mounts behind
        stage.close()


if __name__ == "__main__":
    main()
