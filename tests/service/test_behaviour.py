"""What containerd's own suite asks of a snapshotter, over the socket and with real mounts (containerd, ``core/snapshots/testsuite``)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.service.served import ACTIVE, COMMITTED, EXISTS, INVALID, NOT_FOUND, PRECONDITION, VIEW, Client, code, mounted
from tests.trees import differences, look

pytestmark = pytest.mark.root


def layer(client: Client, work: Path, name: str, parent: str, files: dict[str, str | None]) -> None:
    """A committed snapshot ``name`` on ``parent`` with files written (None: removed) in it."""
    with mounted(client.prepare(f"{name}-active", parent), work) as root:
        for path, text in files.items():
            if text is None:
                (root / path).unlink()
            else:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(text)
    client.commit(name, f"{name}-active")


def seen(client: Client, work: Path, parent: str, key: str = "look") -> dict[str, str]:
    with mounted(client.view(key, parent), work) as root:
        found = {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}
    client.remove(key)
    return found


def test_layers_build_upon_each_other(client: Client, tmp_path: Path) -> None:
    work = tmp_path / "work"
    layer(client, work, "one", "", {"foo": "foo", "a/b/c": "c"})
    layer(client, work, "two", "one", {"bar": "bar", "a/b/c": "changed"})
    assert seen(client, work, "one") == {"foo": "foo", "a/b/c": "c"}
    assert seen(client, work, "two") == {"foo": "foo", "bar": "bar", "a/b/c": "changed"}
    info = client.stat("two")
    assert (info.parent, info.kind) == ("one", COMMITTED)


def test_an_active_snapshot_says_what_it_is(client: Client) -> None:
    client.prepare("active", test_label="here")
    info = client.stat("active")
    assert (info.name, info.parent, info.kind, dict(info.labels)) == ("active", "", ACTIVE, {"test_label": "here"})
    assert info.created_at.seconds > 1_600_000_000
    client.commit("committed", "active", other="x")
    assert dict(client.stat("committed").labels) == {"other": "x"}
    with code(NOT_FOUND):
        client.stat("active")


def test_keys_and_parents_are_checked(client: Client, tmp_path: Path) -> None:
    client.prepare("key")
    with code(EXISTS):
        client.prepare("key")
    with code(EXISTS):
        client.view("key")
    with code(NOT_FOUND):
        client.prepare("other", "no such parent")
    with code(INVALID):
        client.prepare("other", "key")
    with code(INVALID):
        client.prepare("")
    client.commit("base", "key")
    client.prepare("key")
    with code(EXISTS):
        client.commit("base", "key")
    with code(NOT_FOUND):
        client.commit("new", "nothing")
    client.view("looking", "base")
    assert client.stat("looking").kind == VIEW
    with code(PRECONDITION):
        client.commit("new", "looking")
    with code(NOT_FOUND):
        client.mounts("nothing")
    with code(NOT_FOUND):
        client.mounts("base")
    with code(NOT_FOUND):
        client.remove("nothing")
    with code(NOT_FOUND):
        client.usage("nothing")


def test_the_mounts_of_a_key_stay_what_they_were(client: Client) -> None:
    made = client.prepare("key")
    assert client.mounts("key") == made
    client.commit("base", "key")
    for key, mounts in (("active", client.prepare("active", "base")), ("view", client.view("view", "base"))):
        assert client.mounts(key) == mounts


def test_a_view_cannot_be_written(client: Client, tmp_path: Path) -> None:
    layer(client, tmp_path / "work", "one", "", {"foo": "foo"})
    layer(client, tmp_path / "work", "two", "one", {"bar": "bar"})
    for parent in ("", "one", "two"):
        with mounted(client.view(f"view-{parent}", parent), tmp_path / "work") as root, pytest.raises(OSError, match="Read-only"):
            (root / "new").write_text("no")


def test_labels_change_one_by_one_or_all_at_once(client: Client) -> None:
    client.prepare("key", one="1", two="2")
    before = client.stat("key")
    changed = client.update("key", {"one": "uno", "two": "ignored"}, "labels.one")
    assert dict(changed.labels) == {"one": "uno", "two": "2"}
    assert changed.updated_at.ToNanoseconds() > before.updated_at.ToNanoseconds()
    assert changed.created_at == before.created_at
    assert dict(client.update("key", {"only": "this"}, "labels").labels) == {"only": "this"}
    assert dict(client.update("key", {"without": "mask"}).labels) == {"without": "mask"}
    assert dict(client.update("key", {"dotted.name": "x"}, "labels.dotted.name").labels) == {"without": "mask", "dotted.name": "x"}
    assert dict(client.update("key", {}, "labels.without").labels) == {"dotted.name": "x"}
    with code(INVALID):
        client.update("key", {}, "parent")
    with code(NOT_FOUND):
        client.update("nothing", {}, "labels")


def test_what_others_build_upon_cannot_be_removed(client: Client, tmp_path: Path) -> None:
    layer(client, tmp_path / "work", "one", "", {"foo": "foo"})
    layer(client, tmp_path / "work", "two", "one", {"bar": "bar"})
    client.prepare("active", "two")
    for name in ("one", "two"):
        with code(PRECONDITION):
            client.remove(name)
    for name in ("active", "two", "one"):
        client.remove(name)
    assert client.list() == {}
    assert list((tmp_path / "root" / "snapshots").iterdir()) == []
    assert list((tmp_path / "root" / "trash").iterdir()) == []


def test_listing_selects_by_filters(client: Client, tmp_path: Path) -> None:
    layer(client, tmp_path / "work", "base", "", {})
    client.prepare("active", "base", **{"containerd.io/snapshot.ref": "sha256:abc"})
    client.view("view", "base")
    assert set(client.list()) == {"base", "active", "view"}
    assert client.list()["active"] == client.stat("active")
    for text, expected in {
        "kind==active": {"active"},
        "kind==committed": {"base"},
        "kind!=view": {"base", "active"},
        "name==base": {"base"},
        'parent=="base"': {"active", "view"},
        'parent==""': {"base"},
        "name~=^(base|view)$": {"base", "view"},
        'labels."containerd.io/snapshot.ref"': {"active"},
        'labels."containerd.io/snapshot.ref"==sha256:abc,parent=="base"': {"active"},
        'labels."containerd.io/snapshot.ref"==sha256:abc,parent==""': set(),
        "name~=/^v/": {"view"},
    }.items():
        assert set(client.list(text)) == expected, text
    assert set(client.list("kind==view", "name==base")) == {"view", "base"}
    for wrong in ("name=base", "name==", '"unclosed', "name~=(", ",", "name==a,"):
        with code(INVALID):
            client.list(wrong)


def test_a_long_listing_comes_whole(client: Client) -> None:
    for number in range(230):
        client.prepare(f"key-{number}")
    assert len(client.list()) == 230


def test_files_change_over_layers(client: Client, tmp_path: Path) -> None:
    work = tmp_path / "work"
    layer(client, work, "one", "", {"foo": "foo", "folder/inside": "x"})
    layer(client, work, "two", "one", {"foo": "foo2"})
    layer(client, work, "three", "two", {"foo": None, "folder/inside": None})
    layer(client, work, "four", "three", {"foo": "again"})
    assert seen(client, work, "two") == {"foo": "foo2", "folder/inside": "x"}
    assert seen(client, work, "three") == {}
    assert seen(client, work, "four") == {"foo": "again"}


def test_a_folder_of_a_lower_layer_can_be_replaced(client: Client, tmp_path: Path) -> None:
    work = tmp_path / "work"
    layer(client, work, "one", "", {"folder/old": "old"})
    with mounted(client.prepare("active", "one"), work) as root:
        (root / "folder/old").unlink()
        (root / "folder").rmdir()
        (root / "folder").mkdir()
        (root / "folder/new").write_text("new")
    client.commit("two", "active")
    assert seen(client, work, "two") == {"folder/new": "new"}


def test_owners_and_permissions_survive(client: Client, tmp_path: Path) -> None:
    work = tmp_path / "work"
    with mounted(client.prepare("a1"), work) as root:
        (root / "dir").mkdir(mode=0o700)
        (root / "file").write_text("x")
        os.chown(root / "dir", 1, 2)
    client.commit("one", "a1")
    with mounted(client.prepare("a2", "one"), work) as root:
        os.chown(root / "file", 5000, 5001)
        os.chmod(root / "dir", 0o1777)
    client.commit("two", "a2")
    with mounted(client.view("v", "two"), work) as root:
        file, folder = (root / "file").stat(), (root / "dir").stat()
        assert (file.st_uid, file.st_gid, folder.st_uid, folder.st_gid) == (5000, 5001, 1, 2)
        assert stat.S_IMODE(folder.st_mode) == 0o1777


def test_the_root_has_its_parents_owner_and_mode(client: Client, tmp_path: Path) -> None:
    with mounted(client.prepare("a1"), tmp_path / "work") as root:
        assert stat.S_IMODE(root.stat().st_mode) == 0o755
        os.chown(root, 7, 8)
        os.chmod(root, 0o1711)
    client.commit("one", "a1")
    with mounted(client.prepare("a2", "one"), tmp_path / "work") as root:
        status = root.stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (7, 8, 0o1711)


def test_files_move_between_layers(client: Client, tmp_path: Path) -> None:
    work = tmp_path / "work"
    layer(client, work, "one", "", {"dir1/f1": "1", "dir2/f2": "2"})
    with mounted(client.prepare("active", "one"), work) as root:
        (root / "dir1/f1").rename(root / "dir1/f2")
        (root / "dir3").mkdir()
        (root / "dir2/f2").rename(root / "dir3/f2")
    client.commit("two", "active")
    assert seen(client, work, "two") == {"dir1/f2": "1", "dir3/f2": "2"}


def test_usage_counts_what_is_on_disk_once(client: Client, tmp_path: Path) -> None:
    with mounted(client.prepare("active"), tmp_path / "work") as root:
        (root / "big").write_bytes(os.urandom(1 << 20))
        os.link(root / "big", root / "same")
        active = client.usage("active")
        assert active[1] == 2
        assert 1 << 20 <= active[0] <= (1 << 20) + 65536
    client.commit("base", "active")
    assert client.usage("base") == active
    client.prepare("empty", "base")
    assert client.usage("empty")[1] == 1


def test_128_layers_are_mounted(client: Client, tmp_path: Path) -> None:
    parent = ""
    for number in range(128):
        client.prepare(f"a{number}", parent)
        upper = client.mounts(f"a{number}")[0]
        folder = next((option.removeprefix("upperdir=") for option in upper.options if option.startswith("upperdir=")), upper.source)
        (Path(folder) / f"f{number}").write_text(str(number))
        parent = f"l{number}"
        client.commit(parent, f"a{number}")
    (mount,) = client.view("all", parent)
    lowers = next(option for option in mount.options if option.startswith("lowerdir=")).removeprefix("lowerdir=").split(":")
    assert len(lowers) == 128
    # containerd mounts long lists from the folder that they share; that folder is what has to be short.
    shared = os.path.commonpath(lowers)
    assert len(":".join(os.path.relpath(lower, shared) for lower in lowers)) < 4000


def test_cleanup_takes_what_no_snapshot_knows(client: Client, tmp_path: Path) -> None:
    client.prepare("kept")
    stray = tmp_path / "root/snapshots/99999/fs"
    stray.mkdir(parents=True)
    client.cleanup()
    assert not stray.exists()
    assert client.stat("kept").name == "kept"


def test_the_socket_is_for_root_alone(client: Client, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "root/s.sock").stat().st_mode) == 0o600


def test_a_tree_is_the_same_through_the_snapshotter(client: Client, tmp_path: Path) -> None:
    """Every attribute of a tree that is written survives commit and view."""
    with mounted(client.prepare("active"), tmp_path / "work") as root:
        (root / "f").write_text("x")
        os.mkfifo(root / "fifo")
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        (root / "link").symlink_to("f")
        os.link(root / "f", root / "hard")
        os.setxattr(root / "f", "user.x", b"\x00\xff")
        os.utime(root / "f", ns=(1, 1_600_000_000_123_456_789))
        before = look(root)
    client.commit("one", "active")
    with mounted(client.view("v", "one"), tmp_path / "work") as root:
        assert differences(before, look(root)) == []
