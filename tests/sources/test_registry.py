"""Registries: names, permissions, and connections that break."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipfs_store.errors import BlobMismatch, ImageNotFound, InvalidDescriptor, InvalidReference, RegistryUnavailable
from ipfs_store.images.sources import session
from ipfs_store.images.sources.authorization import Challenge, parse_challenges
from ipfs_store.images.sources.session import is_this_machine
from tests.requirements import require_tool
from tests.sources.conftest import Opener, contents
from tests.sources.made import MadeImage, layout_files, named, sha256, tar, write_folder
from tests.sources.registries import FakeRegistry, Misbehaving, docker_registry


@pytest.fixture(autouse=True)
def nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(session, "_FIRST_DELAY", 0.0)


def big() -> MadeImage:
    """An image with a layer that is not downloaded in one piece."""
    return MadeImage([tar({"big": os.urandom(300_000)})])


@pytest.fixture(params=[False, True], ids=["open", "password"])
def real(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, MadeImage, bool]]:
    """(HOST:PORT, the image that is there as made/thing:1, whether alice has to log in)."""
    made = big()
    skopeo = require_tool("skopeo")
    with docker_registry(tmp_path / "registry", password=request.param) as host:
        layout = write_folder(tmp_path / "layout", layout_files([made.descriptor(**named("1"))], made.blobs))
        login = ["--dest-creds", "alice:secret"] if request.param else []
        copy: list[str | Path] = [
            skopeo,
            "copy",
            "-q",
            "--dest-tls-verify=false",
            *login,
            f"oci:{layout}:1",
            f"docker://{host}/made/thing:1",
        ]
        subprocess.run(copy, check=True)
        yield host, made, request.param


async def test_an_image_of_a_real_registry(real: tuple[str, MadeImage, bool], opened: Opener) -> None:
    host, made, password = real
    options = {"credentials": ("alice", "secret")} if password else {}
    for source in (f"{host}/made/thing:1", f"docker://{host}/made/thing:1", f"{host}/made/thing@sha256:{sha256(made.manifest)}"):
        async with opened(source, **options) as found:
            assert found.name == source.removeprefix("docker://")
            assert found.root.digest.hex == sha256(made.manifest)
            _, config, layers = await contents(found)
            assert (config, layers) == (made.config, made.compressed)
    with pytest.raises(ImageNotFound, match=r"does not have .*/made/thing:2"):
        async with opened(f"{host}/made/thing:2", **options):
            pass
    if password:
        for wrong in ({}, {"credentials": ("alice", "wrong")}):
            with pytest.raises(RegistryUnavailable, match="wants you to log in") as caught:
                async with opened(f"{host}/made/thing:1", **wrong):
                    pass
            assert "--creds" in (caught.value.hint or "")
            assert "secret" not in str(caught.value)


async def test_credentials_of_docker_login_are_used(tmp_path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    made = big()
    with FakeRegistry(made, Misbehaving(tokens=True)) as registry:
        folder = tmp_path / "docker"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": "YWxpY2U6c2VjcmV0"}}}))
        monkeypatch.setenv("DOCKER_CONFIG", str(folder))
        async with opened(registry.name) as found:
            assert (await contents(found))[2] == made.compressed
        parameters, authorization = registry.token_requests[0]
        assert authorization == "Basic YWxpY2U6c2VjcmV0"
        assert parameters == {"service": ["fake"], "scope": ["repository:made/thing:pull"]}
        assert len(registry.token_requests) == 1
        assert all(given in ("", "Bearer token-1") for _, _, given in registry.requests)


async def test_a_token_for_nobody_is_taken_and_renewed_when_it_runs_out(opened: Opener) -> None:
    made = big()
    with FakeRegistry(made, Misbehaving(tokens=True, token_uses=1)) as registry:
        async with opened(registry.name) as found:
            assert (await contents(found))[2] == made.compressed
        assert registry.tokens_given == 3  # one for each: manifest, layer, config
        assert {authorization for _, authorization in registry.token_requests} == {""}


async def test_an_identity_token_is_exchanged(tmp_path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeRegistry(big(), Misbehaving(tokens=True)) as registry:
        auth = tmp_path / "auth.json"
        auth.write_text(json.dumps({"auths": {registry.host: {"identitytoken": "long-lived"}}}))
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(auth))
        async with opened(registry.name):
            pass
        parameters, _ = registry.token_requests[0]
        assert parameters["grant_type"] == ["refresh_token"]
        assert parameters["refresh_token"] == ["long-lived"]


@pytest.mark.parametrize("ranges", [True, False])
async def test_a_blob_is_continued_where_the_connection_broke(ranges: bool, opened: Opener) -> None:
    made = big()
    behaviour = Misbehaving(cut_after=200_000, ranges=ranges)
    with FakeRegistry(made, behaviour) as registry:
        async with opened(registry.name) as found:
            manifest = await found.fetch(found.root)
            assert manifest == made.manifest
            if not ranges:
                behaviour.statuses, behaviour.cut_after = [503], None  # and a registry that begins again is not mixed up
            _, _, layers = await contents(found)
            assert layers == made.compressed
        asked = [extent for path, extent, _ in registry.requests if sha256(made.compressed[0]) in path]
        assert asked == (["", "bytes=200000-"] if ranges else ["", ""])


async def test_a_registry_that_cannot_continue_is_asked_for_all(opened: Opener) -> None:
    made = big()
    behaviour = Misbehaving(cut_after=200_000, ranges=False)
    moved: list[int] = []

    class Watching:
        def begin(self, item: str, action: str, total: int) -> None:
            moved.clear()

        def advance(self, item: str, count: int) -> None:
            moved.append(count)
            if count == 200_000:
                behaviour.cut_after = None

        def done(self, item: str, note: str = "") -> None:
            assert sum(moved) == len(made.compressed[0])

    with FakeRegistry(made, behaviour) as registry:
        async with opened(registry.name, progress=Watching()) as found:
            assert (await contents(found))[2] == made.compressed
        assert -200_000 in moved


async def test_a_connection_that_breaks_for_ever_is_given_up(opened: Opener) -> None:
    made = big()
    with FakeRegistry(made, Misbehaving(cut_after=0)) as registry:
        async with opened(registry.name) as found:
            with pytest.raises(RegistryUnavailable, match=f"does not give layer sha256:{sha256(made.compressed[0])}"):
                await contents(found)


async def test_a_busy_registry_is_asked_again(opened: Opener) -> None:
    made = big()
    with FakeRegistry(made, Misbehaving(statuses=[429, 503])) as registry:
        async with opened(registry.name) as found:
            assert (await contents(found))[2] == made.compressed


@pytest.mark.parametrize(
    ("status", "error", "told"),
    [
        (404, ImageNotFound, "does not have"),
        (403, RegistryUnavailable, "does not allow it"),
        (418, RegistryUnavailable, "HTTP 418"),
    ],
)
async def test_a_refusal_is_told_at_once(status: int, error: type[Exception], told: str, opened: Opener) -> None:
    with FakeRegistry(big(), Misbehaving(statuses=[status])) as registry:
        with pytest.raises(error, match=told):
            async with opened(registry.name):
                pass
        assert len(registry.requests) == 1


@pytest.mark.parametrize(
    ("forge", "told"),
    [(lambda blob: blob[:-1] + b"x", "is damaged"), (lambda blob: blob + b"x", "longer than"), (lambda blob: b"", "ended after 0")],
)
async def test_forged_layers_are_never_given(forge: object, told: str, opened: Opener) -> None:
    made = big()
    assert callable(forge)
    forged = {f"sha256:{sha256(made.compressed[0])}": forge(made.compressed[0])}
    with FakeRegistry(made, Misbehaving(forged=forged)) as registry:
        async with opened(registry.name) as found:
            with pytest.raises((BlobMismatch, RegistryUnavailable), match=told):
                await contents(found)


async def test_a_forged_manifest_is_refused(opened: Opener) -> None:
    with FakeRegistry(big()) as registry:
        digest = sha256(registry.manifest)
        registry.blobs[f"sha256:{digest}"] = registry.manifest + b" "
        with pytest.raises(BlobMismatch, match="the registry sent a manifest of digest"):
            async with opened(f"{registry.host}/made/thing@sha256:{digest}"):
                pass


async def test_authorization_does_not_follow_to_another_server(opened: Opener) -> None:
    made = big()
    with FakeRegistry(made) as storage:
        behaviour = Misbehaving(tokens=True, redirect_to=f"http://{storage.host}")
        with FakeRegistry(made, behaviour) as registry:
            async with opened(registry.name) as found:
                assert (await contents(found))[2] == made.compressed
        assert storage.requests
        assert {authorization for _, _, authorization in storage.requests} == {""}


@pytest.mark.parametrize("said", ["text/plain", "application/json; charset=utf-8", ""])
async def test_a_manifest_says_what_it_is_where_the_registry_does_not(said: str, opened: Opener) -> None:
    with FakeRegistry(big(), Misbehaving(media_type=said)) as registry:
        async with opened(registry.name) as found:
            assert found.root.media_type == "application/vnd.oci.image.manifest.v1+json"


@pytest.mark.parametrize(
    ("document", "told"),
    [(b'{"schemaVersion":1}', "schema version 1"), (b'{"mediaType":"text/html"}', "'text/html', neither"), (b"<html>", "not JSON")],
)
async def test_what_is_no_image_is_told(document: bytes, told: str, opened: Opener) -> None:
    with FakeRegistry(big(), Misbehaving(media_type="text/html")) as registry:
        registry.manifest = document
        with pytest.raises(InvalidDescriptor, match=told):
            async with opened(registry.name):
                pass


async def test_nobody_listens(opened: Opener) -> None:
    with pytest.raises(RegistryUnavailable, match=r"registry 127\.0\.0\.1:1 does not give"):
        async with opened("127.0.0.1:1/thing"):
            pass
    with pytest.raises(InvalidReference, match="upper-case"):
        async with opened("Thing"):
            pass


def test_this_machine_is_talked_to_without_tls() -> None:
    assert all(map(is_this_machine, ("localhost", "localhost:5000", "127.0.0.1", "127.9.9.9:80", "[::1]:5000", "a.localhost:1")))
    assert not any(map(is_this_machine, ("docker.io", "localhost.example.org", "10.0.0.1:5000", "[2001:db8::1]:5000")))


def test_challenges_are_read_as_registries_write_them() -> None:
    bearer = Challenge("bearer", "https://auth.example.org/token", "registry", "repository:a/b:pull,push")
    text = 'Bearer realm="https://auth.example.org/token",service="registry",scope="repository:a/b:pull,push"'
    assert parse_challenges([text]) == [bearer]
    assert parse_challenges([f'Basic realm="x", {text}']) == [bearer, Challenge("basic", "x")]
    assert parse_challenges(["Basic realm=x", text.replace("Bearer", "bearer")]) == [bearer, Challenge("basic", "x")]
    assert parse_challenges(["Negotiate", 'Digest realm="x"', ""]) == []
    assert parse_challenges([r'Basic realm="a \"b\""']) == [Challenge("basic", 'a "b"')]
