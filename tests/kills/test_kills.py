"""kill -9 of the daemon, of the data plane, of both, of the holder, at random moments under containers that read, map, execute and walk: none sees
an error or a wrong byte.

``--kill-seconds 600`` for the long run.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.holder.locks import owner
from tests.containerd import PrivateContainerd
from tests.containerd_client.images import tar
from tests.integration.stage import Stage, docker_archive, stage
from tests.kills import reader
from tests.patience import PATIENCE
from tests.requirements import require_fuse, require_tool

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.containerd]

CONTAINERS = 20
PAUSE = (0.5, 3.0)
"""Seconds between two kills."""
CACHE = "12MiB"
"""A quarter of the image, or what was read once would never be asked for again."""


def image(path: Path, dice: random.Random) -> dict[str, list[object] | None]:
    """A busybox, and three layers of files below ``tree``, small ones and some of megabytes; what is in them all together."""
    manifest: dict[str, list[object] | None] = {}
    # The host's /usr, with its Python, is mounted where the links lead.
    below: dict[str, bytes | str | None] = {"bin": None, "tree": None, "lib": "usr/lib", "lib64": "usr/lib64"}
    layers = [tar(below, programs={"bin/busybox": require_tool("busybox").read_bytes()})]
    for number in range(3):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            folders = [f"layer{number}"] + [f"layer{number}/d{folder}" for folder in range(12)]
            for folder in folders:
                info = tarfile.TarInfo(f"tree/{folder}")
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
                manifest[folder] = None
            for count in range(200):
                size = 2 << 20 if count % 40 == 0 else dice.randrange(60_000)
                data = dice.randbytes(size)
                name = f"{dice.choice(folders)}/f{count}"
                info = tarfile.TarInfo(f"tree/{name}")
                info.size, info.mode = size, 0o644
                archive.addfile(info, io.BytesIO(data))
                manifest[name] = [size, hashlib.sha256(data).hexdigest()]
        layers.append(buffer.getvalue())
    docker_archive(path, layers)
    return manifest


@pytest.fixture(params=["portable", "native"])
def on_stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    require_fuse()
    root = Path(tempfile.mkdtemp(prefix="kills-", dir="/var/tmp"))
    try:
        with stage(root, request.param) as made:
            yield made
    finally:
        shutil.rmtree(root)


def kill(victim: int) -> None:
    """Exactly this one; 0, which would be our own process group, is nobody."""
    if victim:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)


def worker(on_stage: Stage) -> int:
    """The process that holds the data plane's lock; 0 when there is none just now."""
    return owner(on_stage.root / "snapshotter/dataplane.lock")


def holder(on_stage: Stage) -> int:
    return owner(on_stage.root / "snapshotter/holder.lock")


def container(containerd: PrivateContainerd, folder: Path, seed: int) -> subprocess.Popen[str]:
    """``reader.py`` in a container, with the host's Python."""
    mounts = {"/usr": "/usr", sys.base_prefix: sys.base_prefix, str(folder): "/stage"}
    binds = [f"--mount=type=bind,src={source},dst={target},options=rbind:ro" for source, target in mounts.items()]
    python = str(Path(sys.executable).resolve())
    command = [
        containerd.ctr_binary, "--address", containerd.address, "run", "--rm", "--snapshotter", "ipfs", *binds, "killed", f"reader-{seed}",
        python, "-B", "/stage/reader.py", "/tree", "/stage/manifest", "/stage/stop", str(seed),
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=containerd.environment)


def test_no_container_notices(on_stage: Stage, request: pytest.FixtureRequest) -> None:
    seconds = float(request.config.getoption("--kill-seconds"))
    seed = int(request.config.getoption("--kill-seed") or time.time_ns())
    dice = random.Random(seed)
    manifest = image(on_stage.root / "image.tar", dice)
    (on_stage.root / "manifest").write_text(json.dumps(manifest))
    pushed = on_stage.push(on_stage.root / "image.tar")
    on_stage.serve()
    on_stage.cache = CACHE
    on_stage.start_daemon()
    folder = Path(tempfile.mkdtemp(prefix="ctrd-", dir="/tmp"))
    counts = {"daemon": 0, "data plane": 0, "both": 0, "holder": 0}
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        containerd = stack.enter_context(PrivateContainerd(folder, "2.4", {"ipfs": on_stage.socket}))
        containerd.wait_for_snapshotter("ipfs")
        pulled = on_stage.rpull(containerd, pushed["cid"], "--name", "killed")
        assert {layer["how"] for layer in pulled["layers"]} == {"lazy"}
        stop = on_stage.root / "stop"
        shutil.copy(reader.__file__, on_stage.root / "reader.py")
        readers = [container(containerd, on_stage.root, number) for number in range(CONTAINERS)]
        stack.callback(lambda: [process.kill() for process in readers])
        for process in readers:  # who starts a container without a daemon gets an error, and has to start it again
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n", process.communicate()[1]
        end = time.monotonic() + seconds
        while time.monotonic() < end and all(process.poll() is None for process in readers):
            time.sleep(dice.uniform(*PAUSE))
            if dice.random() < 0.5:
                Path("/proc/sys/vm/drop_caches").write_text("3")
            whom = dice.choices(list(counts), [3, 5, 2, 1])[0]
            if whom == "holder":
                # Where nobody keeps the descriptor, holder and data plane must not go at the same moment: this one is whole before it dies,
                # and the daemon brings the next holder before anybody else does.
                while not worker(on_stage):
                    time.sleep(0.01)
                victim = holder(on_stage)
                kill(victim)
                while holder(on_stage) in (0, victim):
                    time.sleep(0.01)
            else:
                if whom != "daemon":
                    kill(worker(on_stage))
                if whom != "data plane":
                    on_stage.end_daemon(signal.SIGKILL)
                    on_stage.start_daemon()  # as systemd does
            counts[whom] += 1
        stop.touch()
        results = [process.communicate(timeout=PATIENCE) for process in readers]
        wrong = [error for (_, error), process in zip(results, readers, strict=True) if process.returncode]
        assert not wrong, f"seed {seed}, after {counts}:\n{wrong[0]}\n{on_stage.log()[-6000:]}\n{containerd.log.read_text()[-3000:]}"
        said = [json.loads(out) for out, _ in results]
        print(
            f"{on_stage.mode}: {CONTAINERS} containers, {counts}; {sum(one['actions'] for one in said)} actions, the slowest took"
            f" {max(one['slowest'] for one in said)} s; {sum(int(layer['bytes_read']) for layer in on_stage.status()['layers']):,} bytes by the last data plane"
        )
        assert sum(counts.values()) > 2
