"""Roots over metadata images: any mixture of layers, writes that copy no data, owners that are shifted, mounts that come back."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipfs_store.cids import RAW, cid_of, format_cid
from snapshotter.containerd.protos.mount_pb2 import Mount
from snapshotter.holder.table import is_mount_point, mount_table
from snapshotter.mounts.idmap import GID_LABEL, UID_LABEL, IdMap, user_namespace
from snapshotter.mounts.native import LONG
from tests.requirements import require_root
from tests.service.served import EXISTS, Client, FolderMounter, code, mounted, reboot, served
from tests.service.test_remote import CIDS, labels, pull

pytestmark = pytest.mark.root


@pytest.fixture
def mounter(tmp_path: Path) -> Iterator[FolderMounter]:
    require_root()
    (tmp_path / "layers").mkdir()
    yield FolderMounter(tmp_path / "layers", native=True)
    reboot(tmp_path)


@pytest.fixture
def image(client: Client, mounter: FolderMounter) -> Path:
    """A remote layer ``one`` with a few files, one of them large and owned by somebody; its folder."""
    folder = mounter.root / CIDS[0]
    (folder / "dir/sub").mkdir(parents=True)
    (folder / "dir/file").write_text("file")
    (folder / "dir/sub/below").write_text("below")
    (folder / "large").write_bytes(b"large" * 100_000)
    os.link(folder / "dir/file", folder / "twin")
    os.chown(folder / "large", 7, 8)
    pull(client, "one")
    return folder


def uppers(root: Path) -> Path:
    return max((path for path in (root / "root/snapshots").iterdir() if (path / "work").exists()), key=lambda path: int(path.name)) / "fs"


def test_containerd_is_handed_a_bind_of_what_we_mounted(client: Client, image: Path, tmp_path: Path) -> None:
    (mount,) = client.prepare("container", "one")
    assert (mount.type, list(mount.options)) == ("bind", ["rbind", "rw"])
    assert is_mount_point(Path(mount.source))
    assert client.mounts("container") == [mount]
    (view,) = client.view("view", "one")
    assert list(view.options) == ["rbind", "ro"]
    with mounted([view], tmp_path / "work") as root, pytest.raises(OSError, match="Read-only"):
        (root / "new").touch()


def test_changes_of_metadata_and_renames_copy_no_data_and_stay_right_below_another_layer(
    client: Client, image: Path, tmp_path: Path
) -> None:
    with mounted(client.prepare("a", "one"), tmp_path / "work") as root:
        (root / "large").chmod(0o600)
        os.chown(root / "dir/sub/below", 5, 6)
        (root / "dir").rename(root / "moved")
        (root / "dir").mkdir()
        (root / "dir/new").write_text("new")
    assert (
        sum(path.stat().st_size for path in uppers(tmp_path).rglob("*") if path.is_file() and "metacopy" not in str(os.listxattr(path)))
        == 3
    )
    client.commit("two", "a")
    for key, mounts in (("again", client.prepare("again", "two")), ("view", client.view("view", "two"))):
        with mounted(mounts, tmp_path / "work") as root:
            assert {str(path.relative_to(root)) for path in root.rglob("*")} == {
                "dir", "dir/new", "moved", "moved/file", "moved/sub", "moved/sub/below", "large", "twin",
            }, key  # fmt: skip
            assert stat.S_IMODE((root / "large").stat().st_mode) == 0o600
            assert (root / "large").read_bytes() == b"large" * 100_000
            assert (root / "moved/sub/below").read_text() == "below"
            assert (root / "moved/sub/below").stat().st_uid == 5


def test_a_layer_written_natively_is_right_under_portable_mounts(
    client: Client, image: Path, mounter: FolderMounter, tmp_path: Path
) -> None:
    with mounted(client.prepare("a", "one"), tmp_path / "work") as root:
        (root / "large").chmod(0o600)
        (root / "dir").rename(root / "moved")
    client.commit("two", "a")
    client.prepare("active", "two")
    mounter.native = False
    (tmp_path / "other").mkdir()
    client.close()
    reboot(tmp_path)
    with served(tmp_path / "root", mounter) as portable:
        for mounts in (portable.mounts("active"), portable.view("view", "two")):
            assert mounts[0].type == "overlay"
            with mounted(mounts, tmp_path / "work") as root:
                assert (root / "moved/sub/below").read_text() == "below"
                assert (root / "large").read_bytes() == b"large" * 100_000


def test_what_was_mounted_natively_goes_when_it_is_removed_in_portable_mode(
    client: Client, image: Path, mounter: FolderMounter, tmp_path: Path
) -> None:
    (mount,) = client.prepare("container", "one")
    client.close()
    mounter.native = False
    with served(tmp_path / "root", mounter) as portable:
        assert portable.mounts("container")[0].type == "overlay"
        portable.remove("container")
    assert not [at for at in mount_table() if at.point == Path(mount.source)]
    assert list((tmp_path / "root/snapshots").iterdir()) == list((tmp_path / "root/trash").iterdir()) == []


def test_chains_mix_remote_and_ordinary_layers_up_to_120(client: Client, mounter: FolderMounter, tmp_path: Path) -> None:
    for number, cid in enumerate(CIDS):
        (mounter.root / cid).mkdir()
        (mounter.root / cid / f"remote-{number}").write_text(str(number))
        (mounter.root / cid / "shared").write_text(f"remote {number}")
    parent = ""
    for number in range(120):
        name = f"layer-{number}"
        if number % 2:
            with mounted(client.prepare(f"{name}-active", parent), tmp_path / "work") as root:
                (root / f"ordinary-{number}").write_text(str(number))
                (root / "shared").write_text(f"ordinary {number}")
            client.commit(name, f"{name}-active")
        else:
            pull(client, name, parent, number // 2 % 2)
        parent = name
    with mounted(client.prepare("container", parent), tmp_path / "work") as root:
        assert {path.name for path in root.iterdir()} == {"remote-0", "remote-1", "shared", *(f"ordinary-{n}" for n in range(1, 120, 2))}
        assert (root / "shared").read_text() == "ordinary 119"
    for name in ("container", *(f"layer-{number}" for number in reversed(range(120)))):
        client.remove(name)
    assert [at for at in mount_table() if tmp_path in at.point.parents] == []


def test_a_long_chain_becomes_one_image_under_what_was_written(client: Client, mounter: FolderMounter, tmp_path: Path) -> None:
    """It is made while the first container runs on a stack of layers; that one sees the same when it is mounted again on the one image."""
    parent = ""
    for number in range(LONG + 4):
        cid = format_cid(cid_of(RAW, b"%d" % number))
        folder = mounter.root / cid
        (folder / "dir").mkdir(parents=True)
        (folder / f"dir/file-{number}").write_text(str(number))
        (folder / "shared").write_text(str(number))
        if number:
            os.mknod(folder / f"dir/file-{number - 1}", stat.S_IFCHR | 0o600, 0)
        with code(EXISTS):
            client.prepare_with(f"extract {number}", parent, labels(f"layer-{number}", cid))
        parent = f"layer-{number}"
    assert mounter.chains, "every layer that a pull brings has the chain up to it made"
    mounter.chains.clear()
    last = LONG + 3

    def lowers(mounts: list[Mount]) -> int:
        options = next(at.options for at in mount_table() if at.point == Path(mounts[0].source))
        return options.count("lowerdir+=")

    first = client.prepare("first", parent)
    with mounted(first, tmp_path / "work") as root:
        (root / f"dir/file-{last}").chmod(0o640)
        (root / "dir").rename(root / "moved")
    second = client.prepare("second", parent)
    assert (lowers(first), lowers(second)) == (LONG + 4, 1)
    client.commit("written", "first")
    client.prepare("third", "written")
    reboot(tmp_path)
    client.restore()
    for key, name, mode in (("second", "dir", 0o644), ("third", "moved", 0o640)):
        with mounted(client.mounts(key), tmp_path / "work") as root:
            assert {str(path.relative_to(root)) for path in root.rglob("*")} == {"shared", name, f"{name}/file-{last}"}
            assert (root / "shared").read_text() == (root / f"{name}/file-{last}").read_text() == str(last)
            assert stat.S_IMODE((root / f"{name}/file-{last}").stat().st_mode) == mode
    for name in ("second", "third", "written", *(f"layer-{number}" for number in reversed(range(LONG + 4)))):
        client.remove(name)
    assert [at for at in mount_table() if tmp_path in at.point.parents] == []


def test_layers_that_are_the_same_are_mounted_once_and_may_be_in_an_image_twice(
    client: Client, mounter: FolderMounter, tmp_path: Path
) -> None:
    for number, cid in enumerate(CIDS):
        (mounter.root / cid).mkdir()
        (mounter.root / cid / f"remote-{number}").write_text(str(number))
        (mounter.root / cid / "shared").write_text(str(number))
    parent = ""
    for number in range(6):
        pull(client, f"layer-{number}", parent, number % 2)
        parent = f"layer-{number}"
    with mounted(client.prepare("container", parent), tmp_path / "work") as root:
        assert {path.name: path.read_text() for path in root.iterdir()} == {"remote-0": "0", "remote-1": "1", "shared": "1"}
    assert len([at for at in mount_table() if at.kind == "erofs" and tmp_path in at.point.parents]) == 2


def test_inode_numbers_stay_over_changes_and_new_mounts(client: Client, image: Path, mounter: FolderMounter, tmp_path: Path) -> None:
    (mounter.root / CIDS[1]).mkdir()
    (mounter.root / CIDS[1] / "other").write_text("y")
    pull(client, "two", "one", 1)
    names = ("large", "dir", "dir/file", "twin", "other")
    with mounted(client.prepare("container", "two"), tmp_path / "work") as root:
        before = [(root / name).stat().st_ino for name in names]
        assert {(root / name).stat().st_dev for name in (*names, ".")} == {root.stat().st_dev}
        for name in ("large", "dir", "other"):
            (root / name).chmod(0o700)
        assert [(root / name).stat().st_ino for name in names] == before
    reboot(tmp_path)
    with mounted(client.mounts("container"), tmp_path / "work") as root:
        assert [(root / name).stat().st_ino for name in names] == before


def test_removing_leaves_no_mount_and_no_folder(client: Client, image: Path, mounter: FolderMounter, tmp_path: Path) -> None:
    client.prepare("container", "one")
    client.view("view", "one")
    pull(client, "same", "one")
    for name in ("container", "view", "same"):
        client.remove(name)
    points = {mounted_at.point.parent.name for mounted_at in mount_table() if tmp_path in mounted_at.point.parents}
    assert points == {"images"}, "the layer that is left"
    client.remove("one")
    assert [mounted_at for mounted_at in mount_table() if tmp_path in mounted_at.point.parents] == []
    assert mounter.mounted == {}
    for folder in ("snapshots", "images", "trash", "scratch"):
        assert list((tmp_path / "root" / folder).iterdir()) == []


def test_a_restarted_service_finds_its_mounts_without_asking_anybody(tmp_path: Path, mounter: FolderMounter) -> None:
    (tmp_path / "root").mkdir()
    (mounter.root / CIDS[0]).mkdir()
    (mounter.root / CIDS[0] / "a").write_text("x")
    with served(tmp_path / "root", mounter) as client:
        pull(client, "one")
        before = client.prepare("container", "one")
        (Path(before[0].source) / "written").write_text("by the container")
    mounter.mounted.clear()
    mounter.failure = "the node is away"
    with served(tmp_path / "root", mounter) as client:
        assert client.mounts("container") == before
    mounter.failure = ""
    reboot(tmp_path)
    with served(tmp_path / "root", mounter) as client:
        assert client.mounts("container") == before
        assert (Path(before[0].source) / "written").read_text() == "by the container"
        assert (Path(before[0].source) / "a").read_text() == "x"


def test_what_a_killed_service_left_is_cleaned_at_the_next_start(tmp_path: Path, mounter: FolderMounter) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (mounter.root / CIDS[0]).mkdir()
    (mounter.root / CIDS[0] / "a").write_text("x")
    with served(root, mounter) as client:
        pull(client, "one")
        client.prepare("container", "one")
    # A root whose snapshot is not known, an image that no layer has, and a call that was never ended.
    for stray in (root / "snapshots/99/root", root / "images/stray", root / "scratch/merged-1"):
        stray.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", stray], check=True)
        (stray / "file").write_text("of nobody")
    with served(root, mounter) as client:
        client.restore()
        points = {at.point.relative_to(root).parts[0] for at in mount_table() if root in at.point.parents}
        assert points == {"images", "snapshots"}
        assert [path.name for path in (root / "snapshots").iterdir()] == ["2"]
        assert len(list((root / "images").iterdir())) == 1
        for folder in ("scratch", "trash"):
            assert list((root / folder).iterdir()) == []
        assert (Path(client.mounts("container")[0].source) / "a").read_text() == "x"


def test_a_root_on_a_data_mount_that_was_replaced_is_mounted_anew(
    client: Client, image: Path, mounter: FolderMounter, tmp_path: Path
) -> None:
    """The data layer's mount is another one: what a FUSE server leaves that died with its connection."""
    (mount,) = client.prepare("container", "one")
    (Path(mount.source) / "written").write_text("kept")
    fuse = mounter.data[1]
    saved = tmp_path / "saved"
    fuse.rename(saved)
    fuse.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", fuse], check=True)
    subprocess.run(["cp", "-a", f"{saved}/.", fuse], check=True)
    subprocess.run(["rm", "-r", saved], check=True)
    assert client.mounts("container") == [mount]
    root = Path(mount.source)
    assert (root / "large").read_bytes() == b"large" * 100_000
    assert (root / "written").read_text() == "kept"
    assert len([at for at in mount_table() if at.point == root]) == 1


def test_a_containerd_with_a_mount_namespace_of_its_own_sees_the_mounts_come_and_go(tmp_path: Path, mounter: FolderMounter) -> None:
    """As under systemd: the daemon in the machine's namespace, where mounts are shared; containerd in a slave of it."""
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(["mount", "--bind", root, root], check=True)
    subprocess.run(["mount", "--make-shared", root], check=True)
    (mounter.root / CIDS[0]).mkdir()
    (mounter.root / CIDS[0] / "a").write_text("seen")
    script = 'echo ready; read path; cat "$path/a"; echo; read path; ls "$path" | wc -l'
    with (
        subprocess.Popen(
            ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other,
        served(root, mounter) as client,
    ):
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        pull(client, "one")
        (mount,) = client.prepare("container", "one")
        other.stdin.write(f"{mount.source}\n")
        other.stdin.flush()
        assert other.stdout.readline() == "seen\n"
        client.remove("container")
        client.remove("one")
        other.stdin.write(f"{root}/images\n")
        other.stdin.flush()
        assert other.stdout.readline().strip() == "0"


MAPPED = {UID_LABEL: "0:100000:65536", GID_LABEL: "0:200000:65536"}


def test_owners_are_shifted_for_a_user_namespace_and_no_data_is_copied(client: Client, image: Path, tmp_path: Path) -> None:
    with mounted(client.prepare_with("container", "one", MAPPED), tmp_path / "work") as root:
        assert (root.stat().st_uid, root.stat().st_gid) == (100000, 200000)
        assert ((root / "large").stat().st_uid, (root / "large").stat().st_gid) == (100007, 200008)
        in_namespace = ["setpriv", "--reuid=100000", "--regid=200000", "--clear-groups", "sh", "-c"]
        subprocess.run([*in_namespace, "chmod 600 dir/file && mv dir moved && echo x > new"], check=True, cwd=root)
        assert (root / "moved/file").read_text() == "file"
        assert (root / "new").stat().st_uid == 100000
    assert (uppers(tmp_path) / "moved/file").stat().st_blocks <= 8, "its data is not there"
    client.commit("two", "container")
    # On top of what was written with shifted owners: the same shift, another one, and none.
    other = {UID_LABEL: "0:300000:65536", GID_LABEL: "0:300000:65536"}
    for key, shift, owner in (("same", MAPPED, (100000, 200000)), ("other", other, (300000, 300000)), ("none", {}, (0, 0))):
        with mounted(client.prepare_with(key, "two", shift), tmp_path / "work") as root:
            for name in ("new", "moved/file", "."):
                at = (root / name).stat()
                assert (at.st_uid, at.st_gid) == owner, (key, name)
            assert (root / "moved/file").read_text() == "file"


def test_a_user_namespace_with_its_ids_is_made_and_ends() -> None:
    require_root()
    with user_namespace(IdMap.parse("0:100000:65536 0:100000:65536")) as descriptor:
        assert os.readlink(f"/proc/self/fd/{descriptor}").startswith("user:")
        assert os.readlink(f"/proc/self/fd/{descriptor}") != os.readlink("/proc/self/ns/user")
