"""What is written to registries: permissions, connections that break, what is not sent twice."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ipfs_store.errors import RegistryUnavailable
from ipfs_store.images.conversion import ConvertOptions, convert_image
from ipfs_store.images.sources import SourceOptions, open_image
from ipfs_store.images.targets import TargetOptions, open_target, upload
from ipfs_store.oci import Reference
from tests.sources.made import MadeImage, image, layout_files, named, sha256, tar, write_folder
from tests.sources.registries import docker_registry
from tests.targets.test_behaviour import layout, new_image
from tests.targets.uploads import Behaviour, UploadRegistry


def big() -> MadeImage:
    return MadeImage([tar({"big": os.urandom(300_000)})])


async def push(source: str, target: str, scratch: Path, *, platforms: tuple[()] | None = (), **options: object) -> None:
    async with open_image(source, options=SourceOptions(folder=scratch)) as found:
        given = TargetOptions(folder=scratch, **options)  # type: ignore[arg-type]
        async with open_target(target, given) as place:
            await convert_image(found, place, ConvertOptions(platforms=platforms))


async def test_manifests_come_last_and_children_before_their_index(tmp_path: Path) -> None:
    images = [new_image(name) for name in ("amd64", "arm64")]
    with UploadRegistry() as registry:
        await push(layout(tmp_path / "source", *images), f"{registry.host}/made/thing:1", tmp_path, platforms=None)
        paths = [path for method, path in registry.requests if method == "PUT"]
        last_blob = max(number for number, path in enumerate(paths) if "/blobs/" in path)
        manifests = [path.rpartition("/")[2] for path in paths if "/manifests/" in path]
        assert manifests[:2] == [f"sha256:{sha256(made.manifest)}" for made in images]
        assert manifests[-1] == "1"
        assert paths.index(f"/v2/made/thing/manifests/{manifests[-2]}") > last_blob
        listed = json.loads(registry.manifests["made/thing"]["1"])["manifests"]
        assert [item["digest"] for item in listed] == manifests[:2]


async def test_what_the_registry_has_is_not_sent(tmp_path: Path) -> None:
    made = new_image()
    source = layout(tmp_path / "source", made)
    with UploadRegistry() as registry:
        await push(source, f"{registry.host}/made/thing:1", tmp_path)
        sent = registry.writes("PUT")
        assert sent == 3
        await push(source, f"{registry.host}/made/thing:2", tmp_path)
        assert registry.writes("PUT") == sent
        assert registry.manifests["made/thing"]["2"] == made.manifest


@pytest.mark.parametrize("mounts", [True, False])
async def test_blobs_of_another_repository_are_taken_from_there(mounts: bool, tmp_path: Path) -> None:
    made = new_image()
    with UploadRegistry(Behaviour(mounts=mounts)) as registry:
        await push(layout(tmp_path / "source", made), f"{registry.host}/made/thing:1", tmp_path)
        before = registry.writes("PUT")
        origin = Reference.parse(f"{registry.host}/made/thing:1")
        await push(layout(tmp_path / "again", made), f"{registry.host}/other:1", tmp_path, mount_from=origin)
        assert set(registry.blobs["other"]) == set(registry.blobs["made/thing"])
        assert registry.writes("PUT") - before == (1 if mounts else 3)  # a config is made here, and small


async def test_real_registries_mount_too(tmp_path: Path) -> None:
    made = new_image()
    with docker_registry(tmp_path / "registry") as host:
        await push(layout(tmp_path / "source", made), f"{host}/made/thing:1", tmp_path)
        async with open_image(f"{host}/made/thing:1", options=SourceOptions(folder=tmp_path)) as found:
            origin = Reference.parse(f"{host}/made/thing:1")
            async with open_target(f"{host}/other/thing:1", TargetOptions(folder=tmp_path, mount_from=origin)) as place:
                found.open_blob = None  # type: ignore[method-assign, assignment]  # no layer passes through here
                await convert_image(found, place)
        async with open_image(f"{host}/other/thing:1", options=SourceOptions(folder=tmp_path)) as found:
            assert await found.fetch(found.root) == made.manifest


@pytest.mark.parametrize("forgets", [False, True])
async def test_an_upload_goes_on_where_the_connection_broke(forgets: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "CHUNK", 100_000)
    made = big()
    with UploadRegistry(Behaviour(cut_after=[120_000, 60_000, 30_000], forgets=forgets)) as registry:
        moved: list[int] = []

        class Watching:
            def begin(self, item: str, action: str, total: int) -> None:
                moved.clear()

            def advance(self, item: str, count: int) -> None:
                moved.append(count)

            def done(self, item: str, note: str = "") -> None:
                assert sum(moved) == len(made.compressed[0])

        await push(layout(tmp_path / "source", made), f"{registry.host}/made/thing:1", tmp_path, progress=Watching())
        assert registry.blobs["made/thing"][f"sha256:{sha256(made.compressed[0])}"] == made.compressed[0]
        assert registry.behaviour.cut_after == []
        if not forgets:  # 60,000 bytes of the first piece, 30,000 of the next: nothing is sent that has arrived
            assert registry.writes("PATCH") == len([60_000, 90_000, 190_000, 290_000, len(made.compressed[0])])


async def test_a_busy_registry_is_asked_again(tmp_path: Path) -> None:
    made = new_image()
    with UploadRegistry(Behaviour(statuses=[429, 503, 500])) as registry:
        await push(layout(tmp_path / "source", made), f"{registry.host}/made/thing:1", tmp_path)
        assert registry.manifests["made/thing"]["1"] == made.manifest


async def test_a_connection_that_breaks_for_ever_is_given_up_without_a_tag(tmp_path: Path) -> None:
    with UploadRegistry(Behaviour(cut_after=[0] * 100)) as registry:
        with pytest.RaisesGroup(pytest.RaisesExc(RegistryUnavailable, match="does not take sha256:")):
            await push(layout(tmp_path / "source", big()), f"{registry.host}/made/thing:1", tmp_path)
        assert registry.manifests == {}


@pytest.mark.parametrize(("status", "told"), [(401, "wants you to log in"), (403, "does not allow it"), (413, "HTTP 413")])
async def test_a_refusal_is_told_at_once(status: int, told: str, tmp_path: Path) -> None:
    with UploadRegistry(Behaviour(statuses=[status] * 3)) as registry:
        with pytest.RaisesGroup(pytest.RaisesExc(RegistryUnavailable, match=told)):
            await push(layout(tmp_path / "source", big()), f"{registry.host}/made/thing:1", tmp_path)
        assert registry.writes("POST") == 1


async def test_what_the_registry_says_of_a_manifest_is_told(tmp_path: Path) -> None:
    refusing = UploadRegistry(Behaviour(refusal="no such platform"))
    with refusing as registry, pytest.raises(RegistryUnavailable, match="MANIFEST_INVALID: no such platform"):
        await push(layout(tmp_path / "source", big()), f"{registry.host}/made/thing:1", tmp_path)


async def test_a_token_for_writing_is_asked_for(tmp_path: Path) -> None:
    made = new_image()
    with UploadRegistry(Behaviour(tokens=True)) as registry:
        await push(layout(tmp_path / "source", made), f"{registry.host}/made/thing:1", tmp_path)
        assert registry.manifests["made/thing"]["1"] == made.manifest
        assert "repository:made/thing:pull,push" in registry.scopes


@pytest.mark.parametrize("known", [("alice", "secret"), ("alice", "wrong"), None])
async def test_a_registry_with_a_password(known: tuple[str, str] | None, tmp_path: Path) -> None:
    made = big()
    with docker_registry(tmp_path / "registry", password=True) as host:
        target = f"{host}/made/thing:1"
        if known == ("alice", "secret"):
            await push(layout(tmp_path / "source", made), target, tmp_path, credentials=known)
            async with open_image(target, options=SourceOptions(folder=tmp_path, credentials=known)) as found:
                assert await found.fetch(found.root) == made.manifest
        else:
            with pytest.RaisesGroup(pytest.RaisesExc(RegistryUnavailable, match="log in"), flatten_subgroups=True):
                await push(layout(tmp_path / "source", made), target, tmp_path, credentials=known)


async def test_nobody_there_is_one_error(tmp_path: Path) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(RegistryUnavailable)):
        await push(layout(tmp_path / "source", image("x")), "127.0.0.1:1/made/thing:1", tmp_path)


async def test_ipfs_urls_do_not_reach_a_registry(tmp_path: Path) -> None:
    """docker-registry refuses manifests with URLs that are not HTTP."""
    made = new_image()
    manifest = json.loads(made.manifest)
    for layer in manifest["layers"]:
        layer["urls"] = ["ipfs://bafkreigaknpexyvxt76zgkitavbwx6ejgfheup5oybpm77f3pxzrvwpfdi"]
    made.manifest = json.dumps(manifest).encode()
    source = write_folder(tmp_path / "source", layout_files([made.descriptor(**named("1"))], made.blobs))
    with docker_registry(tmp_path / "registry") as host:
        await push(f"oci:{source}", f"{host}/made/thing:1", tmp_path)
        async with open_image(f"{host}/made/thing:1", options=SourceOptions(folder=tmp_path)) as found:
            assert b"ipfs" not in await found.fetch(found.root)
