"""Every format and option: what is written reads back, keeps what it promises, and is the same wherever it is made."""

import base64
import gzip
import hashlib
import io
import json
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

from ipfs_store.errors import InvalidInput, InvalidLayer
from ipfs_store.formats.layer import Layer, open_layer, read_file
from ipfs_store.formats.names import (
    ANNOTATION_TOC_DIGEST,
    ANNOTATION_UNCOMPRESSED_SIZE,
    ANNOTATION_ZSTD_CHECKSUM,
    ANNOTATION_ZSTD_CHECKSUM_OLD,
    ANNOTATION_ZSTD_POSITION,
    ANNOTATION_ZSTD_POSITION_OLD,
    ANNOTATION_ZSTD_TAR_SPLIT,
    TOC_NAME,
)
from ipfs_store.formats.options import WriteOptions, Written
from ipfs_store.formats.writer import write_layer
from tests.formats.blobs import VECTORS, BytesBlob, of_entry, of_tar

PRIORITIZED = ("usr/lib/small-31", "usr/bin/twin", "etc/hostname")
LAZY = {
    "estargz": WriteOptions(),
    "chunks": WriteOptions(chunk_size=20_000, level=1),
    "stored": WriteOptions(level=0),
    "grouped": WriteOptions(chunk_size=20_000, min_chunk_size=50_000),
    "prioritized": WriteOptions(prioritized=PRIORITIZED),
    "grouped and prioritized": WriteOptions(min_chunk_size=1 << 20, prioritized=PRIORITIZED),
    "external": WriteOptions(external_toc=True),
    "kept": WriteOptions(external_toc=True, keep_diff_id=True),
    "kept and grouped": WriteOptions(external_toc=True, keep_diff_id=True, min_chunk_size=30_000, chunk_size=10_000),
    "zstd": WriteOptions(format="zstd:chunked"),
    "zstd prioritized": WriteOptions(format="zstd:chunked", level=9, chunk_size=65536, prioritized=PRIORITIZED),
    "zstd kept": WriteOptions(format="zstd:chunked", keep_diff_id=True),
    "zstd for podman": WriteOptions(format="zstd:chunked", audience="containers-storage", chunk_size=65536),
}
PLAIN = {f"only {name}": WriteOptions(format=name) for name in ("tar", "gzip", "zstd")}  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("writing") / "input.tar"
    subprocess.run([sys.executable, VECTORS.parent / "make_input.py", path], check=True)
    return path


def uncompressed(blob: bytes, options: WriteOptions) -> bytes:
    """What any tool unpacks."""
    if options.compression == "gzip":
        return gzip.decompress(blob)
    if options.compression == "zstd":
        return zstandard.ZstdDecompressor().stream_reader(blob, read_across_frames=True).read()
    return blob


async def reopened(blob: bytes, written: Written) -> Layer:
    toc = BytesBlob(written.toc) if written.toc else None
    return await open_layer(BytesBlob(blob), written.annotations, toc_digest=written.toc_digest, external_toc=toc)


async def assert_reads_back(blob: bytes, written: Written, source: Path) -> None:
    layer = await reopened(blob, written)
    expected, contents = of_tar(source)
    found = {entry.path: entry for entry in layer.toc.entries if entry.path}
    assert {path: of_entry(entry) for path, entry in found.items() if path in expected} == expected
    for path, data in contents.items():
        assert b"".join([piece async for piece in read_file(BytesBlob(blob), layer, found[path])]) == data, path
        assert not data or found[path].digest == "sha256:" + hashlib.sha256(data).hexdigest()


def assert_says_what_it_wrote(blob: bytes, written: Written, options: WriteOptions) -> None:
    raw = uncompressed(blob, options)
    assert (written.digest, written.size) == ("sha256:" + hashlib.sha256(blob).hexdigest(), len(blob))
    assert (written.diff_id, written.uncompressed_size) == ("sha256:" + hashlib.sha256(raw).hexdigest(), len(raw))
    assert written.compression == options.compression


@pytest.mark.parametrize("name", LAZY)
async def test_every_lazy_format_reads_back(name: str, source: Path, tmp_path: Path) -> None:
    options = LAZY[name]
    written = write_layer(source, tmp_path / "layer", options)
    blob = (tmp_path / "layer").read_bytes()
    assert_says_what_it_wrote(blob, written, options)
    await assert_reads_back(blob, written, source)
    assert written.annotations[ANNOTATION_UNCOMPRESSED_SIZE] == str(written.uncompressed_size)
    assert bool(written.toc) == options.external_toc
    assert not written.missing


@pytest.mark.parametrize("name", PLAIN)
def test_a_layer_that_is_only_compressed_is_the_same_tar(name: str, source: Path, tmp_path: Path) -> None:
    write_layer(source, tmp_path / "wrapped", WriteOptions(format="gzip"))
    written = write_layer(tmp_path / "wrapped", tmp_path / "layer", PLAIN[name])
    blob = (tmp_path / "layer").read_bytes()
    assert_says_what_it_wrote(blob, written, PLAIN[name])
    assert uncompressed(blob, PLAIN[name]) == source.read_bytes()
    assert (written.toc_digest, written.toc, written.annotations) == ("", b"", {})


@pytest.mark.parametrize("name", LAZY | PLAIN)
def test_the_bytes_are_the_same_at_any_number_of_threads_and_from_any_compression(name: str, source: Path, tmp_path: Path) -> None:
    options = (LAZY | PLAIN)[name]
    first = write_layer(source, tmp_path / "1", options, threads=1)
    for threads in (2, 7):
        assert write_layer(source, tmp_path / str(threads), options, threads=threads) == first
    (tmp_path / "zst").write_bytes(zstandard.compress(source.read_bytes()))
    assert write_layer(tmp_path / "zst", tmp_path / "of zst", options) == first


@pytest.mark.parametrize("name", [name for name, options in LAZY.items() if options.keep_diff_id])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("tail", [b"", bytes(512), bytes(10240), bytes(1024) + b"not zeros" * 1000])
async def test_a_kept_diff_id_is_that_of_the_tar(name: str, form: int, tail: bytes, tmp_path: Path) -> None:
    source = tmp_path / "in.tar"
    with tarfile.open(source, "w", format=form, pax_headers={"comment": "of all"} if form == tarfile.PAX_FORMAT else {}) as tar:
        for number in range(5):
            info = tarfile.TarInfo(f"./d/{number}")
            info.size = 700 * number
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
    data = source.read_bytes()
    data = data[: len(data.rstrip(b"\0")) + 511 & ~511] if not tail else data.rstrip(b"\0").ljust(len(data) - 10240, b"\0")
    data += bytes(-len(data) % 512) + tail
    source.write_bytes(data)
    written = write_layer(source, tmp_path / "layer", LAZY[name])
    blob = (tmp_path / "layer").read_bytes()
    assert uncompressed(blob, LAZY[name]) == data
    assert written.diff_id == "sha256:" + hashlib.sha256(data).hexdigest()
    await assert_reads_back(blob, written, source)


def extension(flag: bytes, record: bytes) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = flag, len(record)
    return info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")


@pytest.mark.parametrize("name", [name for name, options in LAZY.items() if options.keep_diff_id])
def test_headers_that_belong_to_nothing_keep_their_places(name: str, tmp_path: Path) -> None:
    local, general = extension(tarfile.XHDTYPE, b"13 comment=a\n"), extension(tarfile.XGLTYPE, b"13 comment=b\n")
    info = tarfile.TarInfo("file")
    info.size = 5
    tar = general + local + general + info.tobuf() + b"bytes".ljust(512, b"\0") + local + general + local + bytes(1024)
    (tmp_path / "odd.tar").write_bytes(tar)
    written = write_layer(tmp_path / "odd.tar", tmp_path / "odd", LAZY[name])
    assert written.diff_id == "sha256:" + hashlib.sha256(tar).hexdigest()


def test_what_cannot_keep_its_diff_id_is_refused(source: Path, tmp_path: Path) -> None:
    write_layer(source, tmp_path / "has a TOC")
    for number, name in enumerate(("kept", "zstd kept")):
        with pytest.raises(InvalidLayer, match=TOC_NAME):
            write_layer(tmp_path / "has a TOC", tmp_path / str(number), LAZY[name])


@pytest.mark.parametrize(
    "fields",
    [
        {"format": "cpio"}, {"level": 10}, {"format": "zstd:chunked", "level": 0}, {"format": "zstd", "level": 20}, {"chunk_size": 0},
        {"min_chunk_size": -1}, {"format": "zstd:chunked", "min_chunk_size": 1}, {"format": "zstd:chunked", "external_toc": True},
        {"keep_diff_id": True}, {"external_toc": True, "keep_diff_id": True, "prioritized": ("a",)},
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        WriteOptions(**fields)  # type: ignore[arg-type]


def test_annotations_are_those_that_the_reader_looks_for(source: Path, tmp_path: Path) -> None:
    stargz = write_layer(source, tmp_path / "a", LAZY["zstd"])
    podman = write_layer(source, tmp_path / "b", WriteOptions(format="zstd:chunked", audience="containers-storage"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes(), "one blob for both"
    common = {ANNOTATION_UNCOMPRESSED_SIZE: str(stargz.uncompressed_size)}
    position = podman.annotations[ANNOTATION_ZSTD_POSITION]
    offset, length, size, kind = map(int, position.split(":"))
    compressed = (tmp_path / "a").read_bytes()[offset : offset + length]
    checksum = "sha256:" + hashlib.sha256(compressed).hexdigest()
    assert stargz.annotations == {
        ANNOTATION_TOC_DIGEST: stargz.toc_digest, ANNOTATION_ZSTD_CHECKSUM_OLD: checksum, ANNOTATION_ZSTD_POSITION_OLD: position, **common,
    }  # fmt: skip
    split = podman.annotations[ANNOTATION_ZSTD_TAR_SPLIT]
    assert podman.annotations == {
        ANNOTATION_ZSTD_CHECKSUM: checksum, ANNOTATION_ZSTD_POSITION: position, ANNOTATION_ZSTD_TAR_SPLIT: split, **common,
    }  # fmt: skip
    document = zstandard.decompress(compressed)
    assert (len(document), kind) == (size, 1)
    assert "sha256:" + hashlib.sha256(document).hexdigest() == stargz.toc_digest


@pytest.mark.parametrize("name", ["zstd for podman", "zstd kept", "zstd prioritized"])
def test_tar_split_and_files_make_the_tar_again(name: str, source: Path, tmp_path: Path) -> None:
    options = LAZY[name]
    written = write_layer(source, tmp_path / "layer", WriteOptions(**{**_fields(options), "audience": "containers-storage"}))
    blob = (tmp_path / "layer").read_bytes()
    raw = uncompressed(blob, options)
    offset, length, size = map(int, written.annotations[ANNOTATION_ZSTD_TAR_SPLIT].split(":"))
    compressed = blob[offset : offset + length]
    toc_offset, toc_length, _, _ = map(int, written.annotations[ANNOTATION_ZSTD_POSITION].split(":"))
    toc = json.loads(zstandard.decompress(blob[toc_offset : toc_offset + toc_length]))
    assert toc["tarSplitDigest"] == "sha256:" + hashlib.sha256(compressed).hexdigest()
    text = zstandard.ZstdDecompressor().decompressobj().decompress(compressed)
    assert len(text) == size
    contents = {}
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            contents[member.name] = file.read() if file else b""
    again = bytearray()
    names = []
    for number, line in enumerate(text.splitlines()):
        entry = json.loads(line)
        assert entry["position"] == number
        payload = base64.b64decode(entry["payload"] or "")
        if entry["type"] == 2:
            again += payload
        else:
            names.append(entry["name"])
            data = contents[entry["name"].rstrip("/")]
            assert entry.get("size", 0) == len(data)
            assert not data or int.from_bytes(payload, "big") == _crc64(data)
            again += data
    assert bytes(again) == raw
    assert names == [item["name"] for item in toc["entries"] if item["type"] != "chunk"], "containers/storage compares them"


def _fields(options: WriteOptions) -> dict[str, object]:
    return {name: getattr(options, name) for name in options.__dataclass_fields__}


def _crc64(data: bytes) -> int:
    crc = 0xFFFFFFFFFFFFFFFF  # ISO 3309, reflected, as Go's crc64.ISO
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0xD800000000000000 if value & 1 else 0)
        table.append(value)
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFFFFFFFFFF


def test_grouped_members_end_once_they_hold_enough_and_landmarks_are_alone(source: Path, tmp_path: Path) -> None:
    written = write_layer(source, tmp_path / "layer", LAZY["grouped"])
    blob = (tmp_path / "layer").read_bytes()
    ends = [*written.boundaries[1:], len(blob)]
    members = [zlib.decompress(blob[start:end], 31) for start, end in zip(written.boundaries, ends, strict=True)]
    assert b"\x0f" + bytes(511) in members
    few = write_layer(source, tmp_path / "few", WriteOptions(chunk_size=20_000))
    assert len(written.boundaries) < len(few.boundaries) / 2
    assert sum(len(member) >= 50_000 for member in members) > 20


async def test_prioritized_entries_come_in_order_with_what_they_need_and_the_missing_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for name, kind, link in (
            ("a", tarfile.REGTYPE, ""), ("./d/", tarfile.DIRTYPE, ""), ("./d/e", tarfile.DIRTYPE, ""), ("loop1", tarfile.LNKTYPE, "loop2"),
            ("d/e/f", tarfile.LNKTYPE, "d/target"), ("z", tarfile.REGTYPE, ""), ("d/target", tarfile.LNKTYPE, "./z"),
            ("loop2", tarfile.LNKTYPE, "loop1"),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, 5 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"12345"))
    wanted = ("/d/e/f", "nothing", "loop2", "d")
    for number, data in enumerate(((tmp_path / "in.tar").read_bytes(), gzip.compress((tmp_path / "in.tar").read_bytes()))):
        (tmp_path / "source").write_bytes(data)
        written = write_layer(tmp_path / "source", tmp_path / str(number), WriteOptions(prioritized=wanted))
        assert written.missing == ("nothing",)
        with tarfile.open(tmp_path / str(number), "r:gz") as tar:
            names = [name.removeprefix("./") for name in tar.getnames()]
        assert names == ["d", "d/e", "z", "d/target", "d/e/f", "loop1", "loop2", ".prefetch.landmark", "a", TOC_NAME]


def test_progress_adds_up_and_what_it_raises_ends_the_work(source: Path, tmp_path: Path) -> None:
    for number, data in enumerate((source.read_bytes(), gzip.compress(source.read_bytes()))):
        (tmp_path / "in").write_bytes(data)
        for name, options in (LAZY | PLAIN).items():
            told: list[int] = []
            write_layer(tmp_path / "in", tmp_path / f"{number} {name}", options, advance=lambda count, total, told=told: told.append(count))  # type: ignore[misc]
            whole = len(data) if not options.prioritized else len(source.read_bytes())
            assert sum(told) == whole and min(told) >= 0, name

    def stop(count: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_layer(source, tmp_path / "stopped", advance=stop)


def test_what_lies_below_a_file_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for name in ("a", "a/b"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(InvalidLayer, match="'a/b' lies below 'a'"):
        write_layer(tmp_path / "in.tar", tmp_path / "layer")


@pytest.mark.parametrize("compress", [False, True])
async def test_paths_that_come_twice_are_told_by_what_they_stand_for(tmp_path: Path, compress: bool) -> None:
    with tarfile.open(tmp_path / "in.tar", "w:gz" if compress else "w") as tar:
        for name, data in (
            ("./d/", None),
            ("d/f", b"first"),
            ("x", b"x"),
            ("./d//f", b"second"),
            ("d", None),
            ("stargz.index.json", b"{}"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.size = (tarfile.DIRTYPE, 0) if data is None else (tarfile.REGTYPE, len(data))
            tar.addfile(info, io.BytesIO(data or b""))
    for name in ("estargz", "zstd"):
        written = write_layer(tmp_path / "in.tar", tmp_path / name, LAZY[name])
        layer = await reopened((tmp_path / name).read_bytes(), written)
        by_path = {entry.path: entry for entry in layer.toc.entries}
        assert sorted(by_path) == ["", "d", "d/f", "x"]
        pieces = [piece async for piece in read_file(BytesBlob((tmp_path / name).read_bytes()), layer, by_path["d/f"])]
        assert pieces == [b"second"]


def test_memory_does_not_grow_with_the_layer(tmp_path: Path) -> None:
    """1 GiB of holes, as 8,000 files and one large one; the process may take 200 MB, Python and its libraries included."""
    with (tmp_path / "in.tar").open("wb") as file:
        for number in range(8001):
            info = tarfile.TarInfo(f"d/{number}")
            info.size = 512 << 20 if number == 8000 else 64 << 10
            file.write(info.tobuf())
            file.seek(info.size, 1)
        file.write(bytes(1024))
    program = (
        "import sys; from pathlib import Path; from ipfs_store.formats.writer import write_layer;"
        "from ipfs_store.formats.options import WriteOptions;"
        "write_layer(Path(sys.argv[1]), Path(sys.argv[2]), WriteOptions(format=sys.argv[3], level=1));"
        # Not ru_maxrss: that begins with what pytest takes, whose child this is.
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    for form in ("estargz", "zstd:chunked"):
        command = [sys.executable, "-c", program, tmp_path / "in.tar", tmp_path / form, form]
        kibibytes = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert kibibytes < 200_000, form


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    name=st.sampled_from(sorted(LAZY)),
    chunk_size=st.sampled_from([512, 1000, 65536]),
    threads=st.integers(1, 4),
)
async def test_any_tar_reads_back_in_any_format(tmp_path: Path, seed: int, form: int, name: str, chunk_size: int, threads: int) -> None:
    rng = random.Random(seed)
    source, target = tmp_path / f"{seed}.tar", tmp_path / f"{seed}.layer"
    with tarfile.open(source, "w", format=form) as tar:
        for number in range(rng.randrange(12)):
            info = tarfile.TarInfo(f"{'d' * rng.choice([1, 90, 160])}/{number}-{rng.choice(['x', 'ü', '名'])}")
            info.type = rng.choice([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
            info.mode, info.uid, info.gid = rng.randrange(0o10000), rng.randrange(1 << 21), rng.randrange(1 << 21)
            info.mtime = rng.randrange(1 << 33)
            info.linkname = "target" if info.type == tarfile.SYMTYPE else ""
            if form == tarfile.PAX_FORMAT and rng.random() < 0.3:
                info.pax_headers = {
                    "SCHILY.xattr.user.a": rng.choice(["", "b", "ü=\n"]),
                    "mtime": f"{rng.randrange(1 << 33)}.{rng.randrange(10**9):09d}",
                }
                info.mtime = int(info.pax_headers["mtime"].split(".")[0])
            data = rng.randbytes(rng.choice([0, 1, 511, 512, 513, 3000])) if info.type == tarfile.REGTYPE else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    options = WriteOptions(**{**_fields(LAZY[name]), "chunk_size": chunk_size})
    written = write_layer(source, target, options, threads=threads)
    assert_says_what_it_wrote(target.read_bytes(), written, options)
    await assert_reads_back(target.read_bytes(), written, source)
    source.unlink()
    target.unlink()


@pytest.mark.parametrize("name", LAZY | PLAIN)
async def test_a_tar_without_a_byte_is_a_layer_too(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"")
    options = (LAZY | PLAIN)[name]
    written = write_layer(tmp_path / "in", tmp_path / "layer", options)
    blob = (tmp_path / "layer").read_bytes()
    assert_says_what_it_wrote(blob, written, options)
    if name in LAZY:
        assert [entry.path for entry in (await reopened(blob, written)).toc.entries] == [""]
