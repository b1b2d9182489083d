"""Digests that stay what they were, and what refers to them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ipfs_store.cids import RAW, cid_of, format_cid
from ipfs_store.errors import ImageNotFound, InvalidDag, InvalidInput
from ipfs_store.formats.options import WriteOptions
from ipfs_store.images.carfile import export_car, import_car
from ipfs_store.images.conversion import layer_converter, lazy_form
from ipfs_store.images.identity import identify
from ipfs_store.images.pull import copy_file, resolve
from ipfs_store.images.push import PushOptions, PushResult, push_image
from ipfs_store.images.referrers import RemoteReferrer, fetch_referrers
from ipfs_store.images.root import decode_root
from ipfs_store.images.sources import SourceOptions, open_image
from ipfs_store.images.verification import verify
from ipfs_store.nodes.embedded import EmbeddedNode
from ipfs_store.nodes.interface import Node
from ipfs_store.oci.manifest import Index
from ipfs_store.oci.platform import parse_platform
from tests.images.conftest import FILES, made
from tests.images.test_carfile import layer_bytes
from tests.nodes.memory import MemoryNode
from tests.requirements import require_tool
from tests.sources.made import (
    CONFIG,
    INDEX,
    MANIFEST,
    MadeImage,
    described,
    docker_files,
    encode,
    image,
    layout_files,
    named,
    sha256,
    tar,
    write_tar,
)
from tests.sources.registries import FakeRegistry, Misbehaving, docker_registry
from tests.sources.signed import Attached, listing

SIGNATURE, SBOM = "application/vnd.cncf.notary.signature", "application/spdx+json"


def skopeo(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run([require_tool("skopeo"), *arguments], check=check, capture_output=True, text=True)  # type: ignore[list-item]


async def push(node: Node, source: object, **options: object) -> PushResult:
    chosen = PushOptions(convert=layer_converter(WriteOptions()), inspect=lazy_form, preserve_digests=True, **options)  # type: ignore[arg-type]
    async with open_image(str(source), options=SourceOptions(plain_http=True)) as opened:
        return await push_image(node, opened, chosen)


async def payloads(node: Node, found: Sequence[RemoteReferrer]) -> list[bytes]:
    """What each carries beside its config."""
    carried = []
    for referrer in found:
        descriptor = list(referrer.blobs)[1]
        parts: list[bytes] = []

        async def write(piece: bytes, parts: list[bytes] = parts) -> None:
            parts.append(piece)

        await copy_file(node, descriptor, referrer.blobs[descriptor], write)
        carried.append(b"".join(parts))
    return carried


async def test_every_byte_of_an_index_stays(node: Node, tmp_path: Path) -> None:
    images = {name: image(name, architecture=name) for name in ("amd64", "arm64")}
    index = encode(
        {
            "manifests": [item.descriptor(platform={"os": "linux", "architecture": name}) for name, item in images.items()],
            "schemaVersion": 2,
            "mediaType": INDEX,
            "unknown": {"kept": " as it is "},
        }
    )
    source = write_tar(
        tmp_path / "image.tar",
        layout_files([described(INDEX, index, **named("1", "docker.io/library/thing:1"))], [index, *(blob for item in images.values() for blob in item.blobs)]),
    )  # fmt: skip
    result = await push(node, source, platforms=None)
    assert str(result.descriptor.digest) == f"sha256:{sha256(index)}"
    for cid in (result.cid, result.root):
        found = await resolve(node, cid, platforms=None)
        assert [data for _, data in found.indexes] == [index]
        assert [manifest.data for manifest in found.manifests] == [item.manifest for item in images.values()]
        assert [manifest.config_data for manifest in found.manifests] == [item.config for item in images.values()]
    assert [await layer_bytes_of(node, result.root, name) for name in images] == [item.compressed for item in images.values()]


async def layer_bytes_of(node: Node, cid: bytes, architecture: str) -> list[bytes]:
    layers = []
    found = await resolve(node, cid, platforms=[parse_platform(f"linux/{architecture}")])  # type: ignore[arg-type]
    for layer in found.manifests[0].layers:
        parts: list[bytes] = []

        async def write(piece: bytes, parts: list[bytes] = parts) -> None:
            parts.append(piece)

        await copy_file(node, layer.descriptor, layer.cid, write)
        layers.append(b"".join(parts))
    return layers


async def test_of_several_platforms_one_can_be_pushed_under_the_digest_of_all(tmp_path: Path) -> None:
    node = MemoryNode()
    images = {name: image(name, architecture=name) for name in ("amd64", "arm64")}
    index = encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": [item.descriptor(platform={"os": "linux", "architecture": name}) for name, item in images.items()]})  # fmt: skip
    source = write_tar(tmp_path / "image.tar", layout_files([described(INDEX, index)], [index, *(blob for item in images.values() for blob in item.blobs)]))  # fmt: skip
    result = await push(node, source, platforms=(parse_platform("linux/arm64"),))
    assert str(result.descriptor.digest) == f"sha256:{sha256(index)}"
    (manifest,) = (await resolve(node, result.cid, platforms=None)).manifests
    assert manifest.data == images["arm64"].manifest
    with pytest.raises(ImageNotFound, match=r"nothing for linux/amd64; its platforms: linux/arm64"):
        await resolve(node, result.cid, platforms=[parse_platform("linux/amd64")])


async def test_layers_that_are_lazy_already_stay_lazy(tmp_path: Path) -> None:
    converted, kept = MemoryNode(), MemoryNode()
    path = write_tar(tmp_path / "image.tar", layout_files([made().descriptor()], made().blobs))
    async with open_image(str(path)) as opened:
        options = PushOptions(convert=layer_converter(WriteOptions()), inspect=lazy_form)
        first = await push_image(converted, opened, options)
    assert not any(layer.toc for layer in (await push(kept, path)).layers)
    # The converted image as an image of a layout, with its digests kept.
    found = await resolve(converted, first.cid)
    layers = await layer_bytes(converted, first.cid)
    (manifest,) = found.manifests
    again = write_tar(tmp_path / "lazy.tar", layout_files([manifest.descriptor.to_json()], [manifest.data, manifest.config_data, *layers]))
    result = await push(kept, again)
    assert [layer.toc for layer in result.layers] == [layer.toc for layer in first.layers]
    assert result.descriptor.digest == first.descriptor.digest
    assert all(layer.toc is not None for layer in (await resolve(kept, result.cid)).manifests[0].layers)


async def test_a_root_that_does_not_know_a_blob_is_told(tmp_path: Path) -> None:
    node, other = MemoryNode(), MemoryNode()
    source = write_tar(tmp_path / "image.tar", layout_files([made().descriptor()], made().blobs))
    result = await push(node, source)
    another = await push(other, write_tar(tmp_path / "b.tar", layout_files([image("b").descriptor()], image("b").blobs)))
    node.store |= other.store
    block = node.store[result.cid]
    lie = block.replace(format_cid(result.root).encode(), format_cid(another.root).encode())
    node.store[cid_of(RAW, lie)] = lie
    with pytest.raises(InvalidInput):
        await resolve(node, cid_of(RAW, lie))


@pytest.fixture
def gpg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A key of its own, made for the test; its fingerprint."""
    home = Path("/tmp") / f"gpg-{os.getpid()}"  # gpg-agent's socket has at most 107 bytes
    home.mkdir(mode=0o700, exist_ok=True)
    monkeypatch.setenv("GNUPGHOME", str(home))
    tool = require_tool("gpg")
    subprocess.run(
        [tool, "--batch", "--passphrase", "", "--quick-gen-key", "signer@example.org", "ed25519", "sign", "1d"],
        check=True,
        capture_output=True,
    )
    listed = subprocess.run([tool, "--list-keys", "--with-colons"], check=True, capture_output=True, text=True).stdout
    yield next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr"))
    subprocess.run(["gpgconf", "--kill", "all"], check=True)
    shutil.rmtree(home, ignore_errors=True)


async def test_a_signature_made_before_the_push_holds_after_the_pull(node: Node, tmp_path: Path, gpg: str) -> None:
    """Signed and checked by skopeo ("simple signing"), which signs the digest of the manifest."""
    source = made()
    path = write_tar(tmp_path / "image.tar", layout_files([source.descriptor()], source.blobs))
    with docker_registry(tmp_path / "registry") as host:
        name = f"{host}/signed/thing:1"
        skopeo("copy", "-q", "--dest-tls-verify=false", f"oci-archive:{path}", f"docker://{name}")
        before, signature, after = tmp_path / "before.json", tmp_path / "signature", tmp_path / "after.json"
        before.write_text(skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}").stdout)
        skopeo("standalone-sign", before, name, gpg, "-o", signature)
        kept = await push(node, name)
        async with open_image(name, options=SourceOptions(plain_http=True)) as opened:
            rewritten = await push_image(node, opened, PushOptions(convert=layer_converter(WriteOptions()), inspect=lazy_form))

    def check() -> subprocess.CompletedProcess[str]:
        return skopeo("standalone-verify", after, name, gpg, signature, check=False)

    after.write_bytes((await resolve(node, kept.cid)).manifests[0].data)
    done = check()
    assert done.returncode == 0, done.stderr
    assert f"sha256:{sha256(before.read_bytes())}" in done.stdout
    after.write_bytes((await resolve(node, rewritten.cid)).manifests[0].data)
    assert check().returncode != 0


async def test_referrers_of_the_api_come_along_page_by_page(node: Node, other: EmbeddedNode) -> None:
    source = made()
    signature, sbom = Attached(source.manifest, b"signature", SIGNATURE), Attached(source.manifest, b"sbom" * 100_000, SBOM)
    of_sbom = Attached(sbom.manifest, b"signature of the SBOM", SIGNATURE)
    subject = f"sha256:{sha256(source.manifest)}"
    behaviour = Misbehaving(
        referrers={subject: [listing([signature]), listing([sbom])], f"sha256:{sha256(sbom.manifest)}": [listing([of_sbom])]}
    )
    with FakeRegistry(source, behaviour) as registry:
        for item in (signature, sbom, of_sbom):
            registry.blobs |= {f"sha256:{sha256(blob)}": blob for blob in item.blobs}
        result = await push(node, registry.name, referrers=True)
    assert [item.artifact_type for item in result.referrers] == [SIGNATURE, SBOM, SIGNATURE]
    await node.gc()  # the pinned root keeps them
    found = await fetch_referrers(node, await resolve(node, result.cid))
    assert [item.data for item in found] == [item.manifest for item in (signature, sbom, of_sbom)]
    assert [str(item.subject) for item in found] == [subject, subject, f"sha256:{sha256(sbom.manifest)}"]
    assert await payloads(node, found) == [signature.payload, sbom.payload, of_sbom.payload]
    pieces: list[bytes] = []

    async def write(piece: bytes) -> None:
        pieces.append(piece)

    async def read() -> bytes:
        return pieces.pop(0) if pieces else b""

    await export_car(node, (await identify(node, result.cid)).roots, write)
    await import_car(other, read)
    assert await payloads(other, await fetch_referrers(other, await resolve(other, result.cid))) == [
        signature.payload,
        sbom.payload,
        of_sbom.payload,
    ]


async def test_referrers_of_a_registry_without_the_api_come_by_tags() -> None:
    node, source = MemoryNode(), made()
    signature, cosign = Attached(source.manifest, b"one", SIGNATURE), Attached(source.manifest, b"two", "cosign", with_subject=False)
    tag = f"sha256-{sha256(source.manifest)}"
    with FakeRegistry(source, Misbehaving(tags={tag: listing([signature]), f"{tag}.sig": cosign.manifest})) as registry:
        for item in (signature, cosign):
            registry.blobs |= {f"sha256:{sha256(blob)}": blob for blob in item.blobs}
        result = await push(node, registry.name, referrers=True)
    found = await fetch_referrers(node, await resolve(node, result.cid))
    assert await payloads(node, found) == [b"one", b"two"]


async def test_a_real_registry_without_the_api(tmp_path: Path) -> None:
    node, source = MemoryNode(), made([*FILES])
    signature = Attached(source.manifest, b"signature", SIGNATURE)
    layout = write_tar(
        tmp_path / "image.tar",
        layout_files(
            [source.descriptor(**named("1")), signature.descriptor(**named(f"sha256-{sha256(source.manifest)}.sig"))],
            [*source.blobs, *signature.blobs],
        ),
    )
    with docker_registry(tmp_path / "registry") as host:
        for tag in ("1", f"sha256-{sha256(source.manifest)}.sig"):
            skopeo("copy", "-q", "--dest-tls-verify=false", f"oci-archive:{layout}:{tag}", f"docker://{host}/thing:{tag}")
        result = await push(node, f"{host}/thing:1", referrers=True)
    assert await payloads(node, await fetch_referrers(node, await resolve(node, result.cid))) == [b"signature"]


@pytest.mark.parametrize("tagged", [True, False])
async def test_referrers_of_a_layout(tagged: bool, tmp_path: Path) -> None:
    node, source = MemoryNode(), made()
    signature, sbom = Attached(source.manifest, b"signature", SIGNATURE), Attached(source.manifest, b"sbom", SBOM)
    index = listing([signature, sbom])
    entries = [signature.descriptor(), sbom.descriptor()]
    if tagged:
        entries = [described(INDEX, index, **named(f"sha256-{sha256(source.manifest)}"))]
    path = write_tar(
        tmp_path / "image.tar", layout_files([source.descriptor(), *entries], [*source.blobs, index, *signature.blobs, *sbom.blobs])
    )
    result = await push(node, path, referrers=True)
    assert await payloads(node, await fetch_referrers(node, await resolve(node, result.cid))) == [b"signature", b"sbom"]
    assert (await fetch_referrers(node, await resolve(node, (await push(node, path)).cid))) == []


def attested(architecture: str) -> tuple[MadeImage, bytes, bytes, bytes]:
    """An image, an attestation of it as BuildKit puts it beside it, what that carries, and the index of both."""
    subject = image("attested", architecture=architecture)
    statement = b'{"_type":"https://in-toto.io/Statement/v1"}'
    attestation = MadeImage([statement], architecture="unknown")
    attestation.compressed = [statement]
    config = json.loads(attestation.config) | {"os": "unknown"}
    attestation.config = encode(config)
    attestation.manifest = encode(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": described(CONFIG, attestation.config),
            "layers": [described("application/vnd.in-toto+json", statement)],
        }
    )
    about = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": f"sha256:{sha256(subject.manifest)}"}
    entries = [
        subject.descriptor(platform={"os": "linux", "architecture": architecture}),
        described(MANIFEST, attestation.manifest, platform={"os": "unknown", "architecture": "unknown"}, annotations=about),
    ]
    index = encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
    return subject, attestation.manifest, statement, index


async def test_buildkits_attestations_of_what_is_pushed_are_referrers(tmp_path: Path) -> None:
    node = MemoryNode()
    subject, attestation, statement, index = attested("amd64")
    config = encode(json.loads(MadeImage([statement], architecture="unknown").config) | {"os": "unknown"})
    path = write_tar(tmp_path / "i.tar", layout_files([described(INDEX, index)], [index, *subject.blobs, attestation, config, statement]))
    one = await push(node, path, platforms=(parse_platform("linux/amd64"),), referrers=True)
    found = await resolve(node, one.cid, platforms=None)
    assert [manifest.data for manifest in found.manifests] == [subject.manifest]
    (referrer,) = await fetch_referrers(node, found)
    assert (referrer.data, str(referrer.subject)) == (attestation, f"sha256:{sha256(subject.manifest)}")
    assert await payloads(node, [referrer]) == [statement]
    whole = await push(node, path, platforms=None, referrers=True)
    assert whole.referrers == ()
    assert [manifest.data for manifest in (await resolve(node, whole.cid, platforms=None)).manifests] == [subject.manifest, attestation]
    assert (await verify(node, whole.cid)).problems == (await verify(node, one.cid)).problems == []


async def test_buildkits_attestations_attest_the_manifest_that_the_push_made(tmp_path: Path) -> None:
    node = MemoryNode()
    subject, attestation, statement, index = attested("amd64")
    config = encode(json.loads(MadeImage([statement], architecture="unknown").config) | {"os": "unknown"})
    path = write_tar(tmp_path / "i.tar", layout_files([described(INDEX, index)], [index, *subject.blobs, attestation, config, statement]))
    async with open_image(str(path)) as source:
        pushed = await push_image(node, source, PushOptions(platforms=None))
    found = await resolve(node, pushed.cid, platforms=None)
    first, second = Index.parse(found.indexes[0][1], media_type=INDEX).manifests
    assert str(first.digest) != f"sha256:{sha256(subject.manifest)}", "layers have URLs now"
    assert second.attests == first.digest


async def test_a_source_that_knows_no_referrers_says_so(tmp_path: Path) -> None:
    source = MadeImage([tar({"a": b"a"})])
    path = write_tar(tmp_path / "docker.tar", docker_files((source, ["thing:1"])))
    node = MemoryNode()
    with pytest.raises(InvalidInput, match="does not tell"):
        await push(node, path, referrers=True)
    assert await node.pins() == {}


def bundled(source: MadeImage, *attached: Attached) -> bytes:
    """An index that refers to the image, of manifests that do not (image-spec, image-index.md, "subject")."""
    document = json.loads(listing(attached))
    return encode({**document, "artifactType": SBOM, "subject": source.descriptor()})


@pytest.mark.parametrize("nested", [False, True])
async def test_a_referrer_may_be_an_index(nested: bool, node: Node, tmp_path: Path) -> None:
    source = made()
    parts = [Attached(source.manifest, data, SBOM, with_subject=False) for data in (b"one", b"two")]
    index = bundled(source, *parts)
    blobs = [blob for item in parts for blob in item.blobs]
    if nested:
        inner = listing(parts)
        index = encode({**json.loads(index), "manifests": [described(INDEX, inner)]})
        blobs.append(inner)
    entries = [source.descriptor(**named("1")), described(INDEX, index)]
    path = write_tar(tmp_path / "i.tar", layout_files(entries, [*source.blobs, index, *blobs]))
    result = await push(node, path, referrers=True)
    await node.gc()
    (found,) = await fetch_referrers(node, await resolve(node, result.cid))
    assert (found.data, found.artifact_type) == (index, SBOM)
    assert str(found.subject) == f"sha256:{sha256(source.manifest)}"
    got = {}
    for descriptor, cid in found.blobs.items():
        pieces: list[bytes] = []

        async def write(piece: bytes, pieces: list[bytes] = pieces) -> None:
            pieces.append(piece)

        await copy_file(node, descriptor, cid, write)
        got[str(descriptor.digest)] = b"".join(pieces)
    assert got == {f"sha256:{sha256(blob)}": blob for blob in blobs}
    assert not (await verify(node, result.cid)).problems


async def test_an_index_that_refers_to_an_image_comes_from_a_registry() -> None:
    node, source = MemoryNode(), made()
    part = Attached(source.manifest, b"one", SBOM, with_subject=False)
    index = bundled(source, part)
    listed = encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": [described(INDEX, index, artifactType=SBOM)]})
    with FakeRegistry(source, Misbehaving(referrers={f"sha256:{sha256(source.manifest)}": [listed]})) as registry:
        registry.blobs |= {f"sha256:{sha256(blob)}": blob for blob in (index, *part.blobs)}
        result = await push(node, registry.name, referrers=True)
    (found,) = await fetch_referrers(node, await resolve(node, result.cid))
    assert found.data == index and {str(item.digest) for item in found.blobs} == {f"sha256:{sha256(blob)}" for blob in part.blobs}


async def test_a_root_that_lacks_what_a_referrer_carries_is_told(tmp_path: Path) -> None:
    node, source = MemoryNode(), made()
    signature = Attached(source.manifest, b"signature", SIGNATURE)
    path = write_tar(tmp_path / "i.tar", layout_files([source.descriptor(), signature.descriptor()], [*source.blobs, *signature.blobs]))
    root = decode_root(node.store[(await push(node, path, referrers=True)).root])
    lie = replace(root, referrers=(replace(root.referrers[0], blobs=root.referrers[0].blobs[:1]),)).encode()
    node.store[lie.cid] = lie.data
    with pytest.raises(InvalidDag, match="does not link all"):
        await fetch_referrers(node, await resolve(node, lie.cid))
