"""Layers of what containers wrote, by containerd 2; and the end of everything."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import grpc
import pytest

from snapshotter.containerd.protos import descriptor_pb2, diff_pb2, diff_pb2_grpc, snapshots_pb2, snapshots_pb2_grpc
from tests.integration.stage import Stage, started
from tests.integration.test_native import NAMESPACE, fetched, on_stage, pushed
from tests.patience import until
from tests.service.served import mounted
from tests.trees import differences, look

__all__ = ["on_stage", "pushed"]
pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.containerd]


def test_a_commit_is_a_layer_that_containerd_unpacks_to_the_same(on_stage: Stage, pushed: dict[str, Any]) -> None:
    """containerd 2 asks us for the diff, and unpacks it itself since we say that we do not."""
    differ = (
        f'[proxy_plugins.ipfs-diff]\n  type = "diff"\n  address = "{on_stage.socket}"\n'
        '[plugins."io.containerd.service.v1.diff-service"]\n  default = ["ipfs-diff", "walking"]\n'
    )
    with started(on_stage, "2.4", differ) as containerd, grpc.insecure_channel(f"unix:{containerd.address}") as channel:
        lazy = on_stage.rpull(containerd, pushed["cid"], "--name", "lazy")
        on_stage.rpull(containerd, pushed["cid"], "--name", "eager", "--snapshotter", "overlayfs")
        chain = str(lazy["layers"][-1]["chain_id"])
        script = "chmod 700 /usr/lib/big && mv /usr/share /usr/moved && rm /etc/hostname && echo new > /etc/new && chown -R 5:6 /usr/bin"
        containerd.ctr("run", "--snapshotter", "ipfs", "lazy", "work", "sh", "-c", script)
        before = fetched(on_stage)
        done = containerd.run("snapshots", "--snapshotter", "ipfs", "diff", "--keep", "work")  # prints the layer
        assert done.returncode == 0, done.stderr
        data = done.stdout
        made = f"sha256:{hashlib.sha256(data).hexdigest()}"
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            names = set(tar.getnames())
        assert {"usr/lib/big", "usr/moved", "usr/.wh.share", "etc/.wh.hostname", "etc/new", "usr/bin/tool"} <= names
        assert not {"bin/busybox", "bin", "var"} & names
        assert fetched(on_stage) - before < 2_500_000, "what is in the layer, and not busybox"

        snapshots = snapshots_pb2_grpc.SnapshotsStub(channel)
        labels = {"containerd.io/gc.root": "test"}
        prepare = snapshots_pb2.PrepareSnapshotRequest(snapshotter="overlayfs", key="applied", parent=chain, labels=labels)
        mounts = list(snapshots.Prepare(prepare, metadata=NAMESPACE).mounts)
        descriptor = descriptor_pb2.Descriptor(media_type="application/vnd.oci.image.layer.v1.tar+gzip", digest=made, size=len(data))
        diff_pb2_grpc.DiffStub(channel).Apply(diff_pb2.ApplyRequest(diff=descriptor, mounts=mounts), metadata=NAMESPACE)
        ours = list(snapshots.Mounts(snapshots_pb2.MountsRequest(snapshotter="ipfs", key="work"), metadata=NAMESPACE).mounts)
        with mounted(mounts, on_stage.root / "applied") as applied, mounted(ours, on_stage.root / "seen") as seen:
            found = differences(look(applied, skip=frozenset({"stargz.index.json", ".no.prefetch.landmark"})), look(seen))
        # As of any image that has no entry for these folders, or names a file twice (see test_lazy).
        odd = (".: mtime_ns", "usr/moved: mtime_ns", "usr/bin/tool: ", "usr/bin/twin: ")
        assert [line for line in found if not line.startswith(odd)] == []
        containerd.ctr("containers", "rm", "work")
        snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter="overlayfs", key="applied"), metadata=NAMESPACE)


def test_nothing_is_left_after_stop_with_unmount(on_stage: Stage, pushed: dict[str, Any]) -> None:
    with started(on_stage, "2.4") as containerd:
        on_stage.rpull(containerd, pushed["cid"], "--name", "lazy")
        containerd.ctr("run", "-d", "--snapshotter", "ipfs", "lazy", "sleeper", "sleep", "1000")
        refused = on_stage.daemon("stop", "--unmount")
        assert refused.returncode == 1 and "mounts still use layers" in refused.stderr
        containerd.ctr("tasks", "rm", "--force", "sleeper")
        stopped = on_stage.daemon("stop", "--unmount")
        assert stopped.returncode == 0, stopped.stderr
        on_stage.ended()
        table = Path("/proc/self/mountinfo").read_text()
        assert f"{on_stage.root}/" not in table
        on_stage.start_daemon(containerd=str(containerd.address))
        containerd.wait_for_snapshotter("ipfs")
        containerd.ctr("tasks", "start", "-d", "sleeper")
        assert containerd.ctr("tasks", "exec", "--exec-id", "e", "sleeper", "cat", "/etc/hostname") == "vector\n"
        containerd.ctr("tasks", "rm", "--force", "sleeper")
        containerd.ctr("containers", "rm", "sleeper")

    def loops() -> int:
        return subprocess.run(["losetup", "-n", "-O", "BACK-FILE"], capture_output=True, text=True).stdout.count(str(on_stage.root))

    until(lambda: loops() == 0, "loop devices are left")  # who looks at every new block device may still have one open
