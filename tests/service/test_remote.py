"""Layers that are mounted instead of pulled."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import grpc
import pytest

from tests.service.served import COMMITTED, EXISTS, NOT_FOUND, UNAVAILABLE, Client, FolderMounter, code, mounted, reboot, served

pytestmark = pytest.mark.root
CIDS = ["bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy", "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"]


def labels(target: str, cid: str = CIDS[0], **more: str) -> dict[str, str]:
    return {
        "containerd.io/snapshot.ref": target,
        "containerd.io/snapshot/cri.layer-digest": "sha256:" + "1" * 64,
        "containerd.io/snapshot/remote/urls": f"https://elsewhere.example/x,ipfs://{cid}",
        "containerd.io/snapshot/stargz/toc.digest": "sha256:" + "2" * 64,
        **more,
    }


def lay_out(mounter: FolderMounter, number: int, files: dict[str, str]) -> None:
    folder = mounter.root / CIDS[number]
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)


def pull(client: Client, target: str, parent: str = "", number: int = 0) -> None:
    with code(EXISTS):
        client.prepare_with(f"extract {target}", parent, labels(target, CIDS[number]))


def test_a_remote_layer_is_there_at_once(client: Client, mounter: FolderMounter, tmp_path: Path) -> None:
    lay_out(mounter, 0, {"a": "lower", "b": "lower"})
    lay_out(mounter, 1, {"b": "upper"})
    pull(client, "one")
    pull(client, "two", "one", 1)
    info = client.stat("two")
    assert (info.kind, info.parent, info.labels["containerd.io/snapshot.ref"]) == (COMMITTED, "one", "two")
    assert info.labels["containerd.io/snapshot/remote"]
    with code(NOT_FOUND):
        client.stat("extract two")
    source = mounter.mounted[min(mounter.mounted)]
    assert (source.cid, source.digest, source.toc_digest) == (CIDS[0], "sha256:" + "1" * 64, "sha256:" + "2" * 64)
    with mounted(client.prepare("container", "two"), tmp_path / "work") as root:
        assert {path.name: path.read_text() for path in root.iterdir()} == {"a": "lower", "b": "upper"}
        (root / "a").write_text("changed")
    assert (mounter.root / CIDS[0] / "a").read_text() == "lower"
    # containerd finds the layer that it asked for so.
    assert set(client.list('labels."containerd.io/snapshot.ref"==two,parent=="one"')) == {"two"}


@pytest.mark.parametrize("wrong", [{"containerd.io/snapshot/remote/urls": ""}, {"containerd.io/snapshot/remote/urls": "ipfs://nonsense"}])
def test_without_a_usable_url_the_pull_is_an_ordinary_one(client: Client, wrong: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert client.prepare_with("extract", "", labels("one") | wrong)
    assert "ordinary" in caplog.text
    client.commit("one", "extract")
    with code(EXISTS):
        client.prepare_with("extract again", "", labels("one"))


def test_a_layer_that_cannot_be_mounted_is_pulled_with_the_reason_logged(
    client: Client, mounter: FolderMounter, caplog: pytest.LogCaptureFixture
) -> None:
    mounter.failure = "the footer is missing"
    assert client.prepare_with("extract", "", labels("one"))
    assert "the footer is missing" in caplog.text
    assert set(client.list()) == {"extract"}


def test_many_ask_for_one_layer_and_it_is_mounted_once(client: Client, mounter: FolderMounter) -> None:
    lay_out(mounter, 0, {"a": "x"})
    codes: list[object] = []

    def ask(number: int) -> None:
        try:
            client.prepare_with(f"extract {number}", "", labels("one"))
        except grpc.RpcError as error:
            codes.append(error.code())

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [EXISTS] * 16
    assert mounter.calls == 1


def test_removing_unmounts(client: Client, mounter: FolderMounter) -> None:
    lay_out(mounter, 0, {"a": "x"})
    pull(client, "one")
    client.remove("one")
    assert mounter.mounted == {}
    pull(client, "one")
    assert len(mounter.mounted) == 1


def test_after_a_restart_everything_works_again(tmp_path: Path, mounter: FolderMounter) -> None:
    (tmp_path / "root").mkdir()
    lay_out(mounter, 0, {"a": "x"})
    with served(tmp_path / "root", mounter) as client:
        pull(client, "one")
        client.prepare("container", "one")
        before = client.mounts("container")
    mounter.mounted.clear()
    reboot(tmp_path)
    with served(tmp_path / "root", mounter) as client:
        assert client.mounts("container") == before
        assert len(mounter.mounted) == 1, "what the data plane lost is mounted when it is needed"


def test_what_cannot_be_restored_stops_nobody_and_can_be_removed(tmp_path: Path, mounter: FolderMounter) -> None:
    (tmp_path / "root").mkdir()
    lay_out(mounter, 0, {"a": "x"})
    with served(tmp_path / "root", mounter) as client:
        pull(client, "one")
        client.prepare("container", "one")
        client.prepare("other")
    mounter.mounted.clear()
    reboot(tmp_path)
    mounter.failure = "the node is away"
    with served(tmp_path / "root", mounter) as client:
        with code(UNAVAILABLE):
            client.mounts("container")
        with code(UNAVAILABLE):
            client.prepare("new", "one")
        assert "new" not in client.list()
        assert client.mounts("other")
        mounter.failure = ""
        assert client.mounts("container")
        mounter.mounted.clear()
        mounter.failure = "away again"
        client.remove("container")
        client.remove("one")
        assert set(client.list()) == {"other"}


@pytest.mark.parametrize("mounter", ["portable"], indirect=True)
def test_portable_mounts_say_that_they_cannot_shift_owners(client: Client, mounter: FolderMounter) -> None:
    lay_out(mounter, 0, {"a": "x"})
    pull(client, "one")
    mapping = {f"containerd.io/snapshot/{kind}mapping": "0:100000:65536" for kind in ("uid", "gid")}
    with code(grpc.StatusCode.INVALID_ARGUMENT):
        client.prepare_with("container", "one", mapping)
    assert set(client.list()) == {"one"}
    assert client.prepare("container", "one")


def prepared_in(client: Client, namespace: str, target: str, parent: str = "", cid: str = CIDS[0]) -> str:
    """What containerd does for a layer in a namespace: ask for it, and look for what it was told exists; its name with us."""
    with code(EXISTS):
        client.prepare_with(f"{namespace}/7/extract {target}", parent, labels(target, cid), namespace=namespace)
    found = client.list(f'labels."containerd.io/snapshot.ref"=={target},parent=="{parent}"', namespace=namespace)
    return next(iter(found))


def test_namespaces_share_the_chain_that_the_first_mounted(client: Client, mounter: FolderMounter) -> None:
    lay_out(mounter, 0, {"a": "text"})
    assert prepared_in(client, "one", "chain") == prepared_in(client, "two", "chain") == "chain"
    assert mounter.calls == 1


def test_with_a_cache_for_each_namespace_no_chain_is_shared(tmp_path: Path, mounter: FolderMounter) -> None:
    """An image of the second that names the first one's chain gets its own layers."""
    lay_out(mounter, 0, {"a": "the first one's"})
    lay_out(mounter, 1, {"a": "the second one's"})
    (tmp_path / "own").mkdir()
    with served(tmp_path / "own", mounter, per_namespace=True) as client:
        first = prepared_in(client, "first", "chain")
        second = prepared_in(client, "second", "chain", cid=CIDS[1])
        assert (first, second) == ("first/chain", "second/chain")
        assert prepared_in(client, "first", "chain") == first  # again, as for another image
        above = prepared_in(client, "second", "above", second)
        assert client.stat(above).parent == second
        for name, text in ((first, "the first one's"), (second, "the second one's")):
            with mounted(client.view(f"view {name}", name), tmp_path / "work") as root:
                assert (root / "a").read_text() == text
        assert {source.namespace for source in mounter.mounted.values()} == {"first", "second"}
        assert {name for name in client.list() if "chain" in name} >= {first, second}  # garbage collection sees all
        assert first in client.list(namespace="first")
        assert first not in client.list(namespace="second")


def test_a_containerd_that_does_not_say_for_whom_it_looks_pulls_what_another_namespace_has(tmp_path: Path, mounter: FolderMounter) -> None:
    lay_out(mounter, 0, {"a": "text"})
    (tmp_path / "own").mkdir()
    with served(tmp_path / "own", mounter, per_namespace=True) as client:
        for _ in range(2):
            with code(EXISTS):
                client.prepare_with("first/7/extract", "", labels("chain"))
        assert client.prepare_with("second/8/extract", "", labels("chain"))
        client.commit("second/9/chain", "second/8/extract", **{"containerd.io/snapshot.ref": "chain"})
        client.remove("first/chain")
        assert client.prepare_with("first/10/extract", "", labels("chain"))
