"""Our reader of tars sees what Python's tarfile and GNU tar see, and refuses what is broken."""

import io
import random
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfs_store.errors import InvalidLayer
from ipfs_store.formats.headers import Header
from ipfs_store.formats.tarball import TarReader

_KINDS = {
    tarfile.REGTYPE: "reg", tarfile.AREGTYPE: "reg", tarfile.LNKTYPE: "hardlink", tarfile.SYMTYPE: "symlink", tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block", tarfile.DIRTYPE: "dir", tarfile.FIFOTYPE: "fifo", tarfile.GNUTYPE_SPARSE: "reg",
}  # fmt: skip


def ours(data: bytes) -> list[tuple[object, ...]]:
    reader = TarReader(io.BytesIO(data))
    found = []
    while (header := reader.next()) is not None:
        content = b""
        while piece := reader.read(70_001):
            content += piece
        found.append(
            (
                header.name.rstrip("/"),
                header.type,
                header.mode,
                header.uid,
                header.gid,
                header.mtime + header.mtime_ns / 1e9,
                header.link,
                header.uname,
                header.gname,
                header.dev_major,
                header.dev_minor,
                content,
                header.xattrs,
            )
        )
    return found


def theirs(data: bytes) -> list[tuple[object, ...]]:
    found = []
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
        for info in tar:
            file = tar.extractfile(info) if info.isreg() else None
            xattrs = {
                key.removeprefix("SCHILY.xattr."): value.encode("utf-8", "surrogateescape")
                for key, value in info.pax_headers.items()
                if key.startswith("SCHILY.xattr.")
            }
            found.append(
                (
                    info.name.rstrip("/"),
                    _KINDS[info.type],
                    info.mode,
                    info.uid,
                    info.gid,
                    float(info.mtime),
                    info.linkname,
                    info.uname,
                    info.gname,
                    info.devmajor,
                    info.devminor,
                    file.read() if file else b"",
                    xattrs,
                )
            )
    return found


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]))
def test_any_tar_that_tarfile_writes_is_read_as_tarfile_reads_it(seed: int, form: int) -> None:
    rng = random.Random(seed)
    out = io.BytesIO()
    everywhere = {"comment": "x", "SCHILY.xattr.user.all": "v"} if form == tarfile.PAX_FORMAT and rng.random() < 0.3 else {}
    with tarfile.open(fileobj=out, mode="w", format=form, pax_headers=everywhere, encoding="utf-8", errors="surrogateescape") as tar:
        for _ in range(rng.randrange(1, 10)):
            long = form != tarfile.USTAR_FORMAT
            name = "/".join(rng.choice(["a", "ü", "名" * 9, "x" * 99, "\udcff"]) for _ in range(rng.randrange(1, 9 if long else 2)))
            info = tarfile.TarInfo(name)
            info.type = rng.choice([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
            info.mode = rng.randrange(0o10000)
            info.uid, info.gid = (rng.randrange(1 << (40 if long else 21)) for _ in "ug")
            info.mtime = rng.choice([0, 1, 1 << 32, -5 if long else 7])
            info.uname, info.gname = rng.choice(["", "root", "né"]), rng.choice(["", "u" * 31])
            if info.type == tarfile.CHRTYPE:
                info.devmajor, info.devminor = rng.randrange(1 << 20), rng.randrange(1 << 20)
            info.linkname = "t" * rng.choice([1, 99, 300 if long else 50]) if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            if form == tarfile.PAX_FORMAT:
                info.pax_headers = rng.choice(
                    [{}, {"SCHILY.xattr.user.a": "b\n=ü\udcfe"}, {"mtime": "-12.5"}, {"mtime": "12.25", "atime": "3.5"}]
                )
            data = rng.randbytes(rng.choice([0, 1, 512, 2000])) if info.type == tarfile.REGTYPE else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert ours(out.getvalue()) == theirs(out.getvalue())


@pytest.mark.tool("tar")
@pytest.mark.parametrize("form", [["gnu"], ["posix"], ["oldgnu"], ["posix", "--sparse-version=0.0"], ["posix", "--sparse-version=0.1"]])
@pytest.mark.parametrize("pieces", [1, 3, 5, 30, 60])
def test_sparse_files_of_every_kind_come_out_whole(form: list[str], pieces: int, tmp_path: Path) -> None:
    with (tmp_path / "holes").open("wb") as file:
        for number in range(pieces):
            file.seek(number * 200_000)
            file.write(b"data %d" % number * 500)
        file.truncate(pieces * 200_000 + 77)
    (tmp_path / "after").write_bytes(b"after")
    command = ["tar", "-C", tmp_path, "-cS", f"--format={form[0]}", *form[1:], "holes", "after"]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    assert len(data) < pieces * 20_000 + 20_000, "the file system keeps holes"
    found = {str(entry[0]): entry[11] for entry in ours(data)}
    assert found == {"holes": (tmp_path / "holes").read_bytes(), "after": b"after"}


def first(data: bytes) -> Header:
    header = TarReader(io.BytesIO(data)).next()
    assert header is not None
    return header


def block(name: str = "f", **fields: object) -> bytearray:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return bytearray(info.tobuf(tarfile.GNU_FORMAT))


def summed(data: bytearray) -> bytes:
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def test_what_old_writers_did_is_understood() -> None:
    old = block("d/")
    old[156:157], old[257:265] = b"\0", bytes(8)
    assert first(summed(old)).type == "dir", "before POSIX"
    times = block()
    times[345:369] = b"00000000012\x0000000000013\x00"
    assert (first(summed(times)).access_time, first(summed(times)).change_time) == ((10, 0), (11, 0)), "GNU's"
    buggy = block("name")
    buggy[345:351] = b"prefix"
    assert first(summed(buggy)).name == "prefix/name", "Go's before 1.8"
    signed = block("caf\udce9")
    signed[148:156] = b" " * 8
    signed[148:156] = b"%06o\0 " % sum(byte - 256 if byte > 127 else byte for byte in signed[:512])
    assert first(bytes(signed)).name == "caf\udce9", "checksums of signed bytes"
    assert first(summed(block(mtime=-1))).mtime == -1
    assert first(summed(block(uid=1 << 40))).uid == 1 << 40


def archive() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(3):
            info = tarfile.TarInfo(f"{'d' * 120}/{number}")
            info.size, info.pax_headers = 1000, {"mtime": "1.5"}
            tar.addfile(info, io.BytesIO(bytes(1000)))
    return out.getvalue()


def test_a_tar_that_ends_anywhere_but_between_entries_is_refused() -> None:
    data = archive().rstrip(b"\0")
    data += bytes(-len(data) % 512)
    ends = []
    reader = TarReader(io.BytesIO(data + bytes(1024)))
    while reader.next() is not None:
        ends.append(reader.following)
    for end in range(1, len(data) + 512, 256):
        if end in ends:
            assert len(ours(data[:end])) == ends.index(end) + 1
        elif end < ends[-1]:
            with pytest.raises(InvalidLayer, match="ends inside"):
                ours(data[:end])


@pytest.mark.parametrize(
    ("start", "bytes_", "message"),
    [
        (0, b"X", "checksum"), (148, b"zzzzzz", "no header"), (124, b"8888888", "where a number"), (156, b"V", "is of type"),
        (124, b"\xff" * 12, "of -1 bytes|negative"), (100, b"-000644", "where a number"),
    ],
)  # fmt: skip
def test_broken_headers_are_refused_with_a_reason(start: int, bytes_: bytes, message: str) -> None:
    data = block()
    data[start : start + len(bytes_)] = bytes_
    broken = bytes(data) if start in (0, 148) else summed(data)
    with pytest.raises(InvalidLayer, match=message):
        first(broken + bytes(1024))


@pytest.mark.parametrize(
    "records",
    [
        b"12 a=b\n",
        b"no=length\n",
        b"6 ab\n\n\n",
        b"7 a=b\nx",
        b"-1 a=b\n",
        b"14 size=12x45\n",
        b"13 mtime=1e5\n",
        b"18 mtime=12345678\xb2\n",
    ],
)
def test_broken_pax_records_are_refused(records: bytes) -> None:
    head = block("pax")
    head[156:157], head[124:136] = b"x", b"%011o\0" % len(records)
    with pytest.raises(InvalidLayer):
        first(summed(head) + records.ljust(512, b"\0") + bytes(block()) + bytes(1024))


def test_a_header_that_asks_for_gigabytes_is_refused() -> None:
    head = block("long")
    head[156:157], head[124:136] = b"L", b"%011o\0" % (1 << 31)
    with pytest.raises(InvalidLayer, match="over the limit"):
        first(summed(head) + bytes(1024))


def test_a_sparse_map_that_does_not_fit_is_refused() -> None:
    for pax in ({"GNU.sparse.map": "0,1,0,1"}, {"GNU.sparse.map": "5,1,x"}, {"GNU.sparse.map": "0,-1"}, {"GNU.sparse.map": "0"},
                {"GNU.sparse.map": "0,9", "GNU.sparse.size": "5"}, {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 60)},
                {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}):  # fmt: skip
        info = tarfile.TarInfo("f")
        info.size, info.pax_headers = 512, pax
        with pytest.raises(InvalidLayer):
            ours(info.tobuf(tarfile.PAX_FORMAT) + b"x" * 512 + bytes(1024))
