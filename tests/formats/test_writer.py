"""What we write is read back exactly, by us and by GNU tar, and is the same for the same input."""

import gzip
import hashlib
import io
import random
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipfs_store.errors import InvalidLayer
from ipfs_store.formats.layer import open_layer, read_file
from ipfs_store.formats.options import WriteOptions, Written
from ipfs_store.formats.tarball import TarReader
from ipfs_store.formats.writer import write_layer
from tests.formats.blobs import VECTORS, BytesBlob, of_entry, of_tar


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("writer") / "input.tar"
    subprocess.run([sys.executable, VECTORS.parent / "make_input.py", path], check=True)
    return path


async def assert_reads_back(blob: bytes, written: Written, source: Path) -> None:
    layer = await open_layer(BytesBlob(blob), toc_digest=written.toc_digest)
    expected, contents = of_tar(source)
    found = {entry.path: entry for entry in layer.toc.entries if entry.path}
    assert {path: of_entry(entry) for path, entry in found.items() if path in expected} == expected
    for path, data in contents.items():
        assert b"".join([piece async for piece in read_file(BytesBlob(blob), layer, found[path])]) == data, path
        assert found[path].digest == "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("level", [1, 3, 6, 9])
@pytest.mark.parametrize("chunk_size", [4096, 65536, 262144])
async def test_what_is_written_reads_back(source: Path, tmp_path: Path, level: int, chunk_size: int) -> None:
    target = tmp_path / "layer"
    written = write_layer(source, target, WriteOptions(chunk_size=chunk_size, level=level))
    blob = target.read_bytes()
    assert (written.digest, written.size) == ("sha256:" + hashlib.sha256(blob).hexdigest(), len(blob))
    raw = gzip.decompress(blob)
    assert (written.diff_id, written.uncompressed_size) == ("sha256:" + hashlib.sha256(raw).hexdigest(), len(raw))
    await assert_reads_back(blob, written, source)


async def test_sub_second_times_are_kept(source: Path, tmp_path: Path) -> None:
    write_layer(source, tmp_path / "layer")
    layer = await open_layer(BytesBlob((tmp_path / "layer").read_bytes()))
    entry = next(entry for entry in layer.toc.entries if entry.path == "var/xattr")
    assert (entry.mtime, entry.mtime_ns) == (1_600_000_000, 123_456_789)


def test_every_boundary_begins_a_member_and_contents_begin_theirs(source: Path, tmp_path: Path) -> None:
    written = write_layer(source, tmp_path / "layer", WriteOptions(chunk_size=65536))
    blob = (tmp_path / "layer").read_bytes()
    ends = [*written.boundaries[1:], len(blob)]
    members_ = [zlib.decompress(blob[start:end], 31) for start, end in zip(written.boundaries, ends, strict=True)]
    assert b"vector\n" + bytes(505) in members_
    assert b"".join(members_) == gzip.decompress(blob)


@pytest.mark.tool("tar")
def test_gnu_tar_unpacks_it(source: Path, tmp_path: Path) -> None:
    write_layer(source, tmp_path / "layer.tar.gz")
    listed = [
        subprocess.run(["tar", "-tvf", path], check=True, capture_output=True, text=True).stdout
        for path in (source, tmp_path / "layer.tar.gz")
    ]
    theirs = [line for line in listed[1].splitlines() if not line.endswith((".landmark", "stargz.index.json"))]
    assert theirs == listed[0].splitlines()


@pytest.mark.parametrize("wrap", [gzip.compress, lambda data: zstandard.ZstdCompressor().compress(data), lambda data: data])
def test_the_same_tar_gives_the_same_bytes_however_it_was_compressed(source: Path, tmp_path: Path, wrap: object) -> None:
    (tmp_path / "in").write_bytes(wrap(source.read_bytes()))  # type: ignore[operator]
    first = write_layer(source, tmp_path / "a")
    assert write_layer(tmp_path / "in", tmp_path / "b") == first
    assert write_layer(tmp_path / "b", tmp_path / "c") == first, "converted twice, a layer has one TOC"


async def test_prioritized_files_come_first_with_what_they_need(source: Path, tmp_path: Path) -> None:
    wanted = ["usr/lib/small-31", "/usr/bin/twin", "./etc/hostname", "no/such/file"]
    written = write_layer(source, tmp_path / "layer", WriteOptions(prioritized=tuple(wanted)))
    layer = await open_layer(BytesBlob((tmp_path / "layer").read_bytes()))
    await assert_reads_back((tmp_path / "layer").read_bytes(), written, source)
    by_path = {entry.path: entry for entry in layer.toc.entries}
    assert layer.toc.prefetch_end > 0
    before = {path for path, entry in by_path.items() if entry.chunks and entry.chunks[-1].offset < layer.toc.prefetch_end}
    assert before == {"usr/lib/small-31", "usr/bin/tool", "etc/hostname"}


async def test_names_that_are_no_utf8_keep_their_bytes(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "in.tar", "w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        for name in (b"caf\xe9", b"\xff/\xfe"):
            tar.addfile(tarfile.TarInfo(name.decode("utf-8", "surrogateescape")))
    write_layer(tmp_path / "in.tar", tmp_path / "layer")
    layer = await open_layer(BytesBlob((tmp_path / "layer").read_bytes()))
    assert {entry.path.encode("utf-8", "surrogateescape") for entry in layer.toc.entries} == {b"", b"caf\xe9", b"\xff", b"\xff/\xfe"}


async def test_of_a_path_that_comes_twice_the_last_one_counts(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for data in (b"old", b"newer"):
            info = tarfile.TarInfo("file")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    write_layer(tmp_path / "in.tar", tmp_path / "layer")
    layer = await open_layer(BytesBlob((tmp_path / "layer").read_bytes()))
    assert [entry.size for entry in layer.toc.entries if entry.path == "file"] == [5]


@pytest.mark.parametrize("content", [b"", bytes(10240)])
async def test_a_layer_without_entries(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in").write_bytes(content)
    write_layer(tmp_path / "in", tmp_path / "layer")
    layer = await open_layer(BytesBlob((tmp_path / "layer").read_bytes()))
    assert [entry.path for entry in layer.toc.entries] == [""]


def test_a_damaged_tar_is_refused(source: Path, tmp_path: Path) -> None:
    data = source.read_bytes()
    for name, broken in {
        "cut": data[: len(data) // 2],
        "no tar": b"this is no tar" * 1000,
        "header": data[:512] + data[512:1024].replace(b"etc/hostname", b"etc/h0stname") + data[1024:],
        "gzip": gzip.compress(data)[:-20],
        "leads out": _one("../../etc/passwd"),
    }.items():
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(InvalidLayer):
            write_layer(tmp_path / name, tmp_path / "layer")
        (tmp_path / "layer").unlink(missing_ok=True)


def _one(name: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    return out.getvalue()


@pytest.mark.tool("tar")
def test_sparse_files_come_out_whole(tmp_path: Path) -> None:
    with (tmp_path / "holes").open("wb") as file:
        for at in (0, 1 << 20, 3 << 20):
            file.seek(at)
            file.write(b"data" * 1000)
        file.truncate(4 << 20)
    for form in ("gnu", "posix"):
        subprocess.run(["tar", "-C", tmp_path, "-cSf", tmp_path / f"{form}.tar", f"--format={form}", "holes"], check=True)
        with (tmp_path / f"{form}.tar").open("rb") as file:
            reader = TarReader(file)
            header = reader.next()
            assert header is not None
            assert (header.name, header.size, reader.read(1 << 30)) == ("holes", 4 << 20, (tmp_path / "holes").read_bytes())
            assert reader.next() is None


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    chunk_size=st.sampled_from([512, 1000, 65536]),
)
async def test_any_tar_reads_back(tmp_path: Path, seed: int, form: int, chunk_size: int) -> None:
    rng = random.Random(seed)
    source, target = tmp_path / f"{seed}.tar", tmp_path / f"{seed}.layer"
    with tarfile.open(source, "w", format=form) as tar:
        for number in range(rng.randrange(12)):
            info = tarfile.TarInfo(f"{'d' * rng.choice([1, 90, 160])}/{number}-{rng.choice(['x', 'ü', '名'])}")
            info.type = rng.choice([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
            info.mode, info.uid, info.gid, info.mtime = (
                rng.randrange(0o10000),
                rng.randrange(1 << 21),
                rng.randrange(1 << 21),
                rng.randrange(1 << 33),
            )
            info.linkname = "target" if info.type == tarfile.SYMTYPE else ""
            data = rng.randbytes(rng.choice([0, 1, 511, 512, 513, 3000])) if info.type == tarfile.REGTYPE else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    written = write_layer(source, target, WriteOptions(chunk_size=chunk_size, level=1))
    await assert_reads_back(target.read_bytes(), written, source)
    source.unlink()
    target.unlink()
