"""``python -m tests.formats.bombs NAME``: a blob that would take all memory or time, opened by a process that may take neither.

Prints, as JSON, the error's type and message (empty: none) and the most memory that the process had, in bytes.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import tarfile
import zlib
from collections.abc import Callable

import trio
import zstandard

from ipfs_store.errors import IpfsStoreError
from ipfs_store.formats.chunks import decode_chunk
from ipfs_store.formats.document import decode_document
from ipfs_store.formats.entries import decode_toc
from ipfs_store.formats.layer import open_layer
from ipfs_store.formats.limits import MAX_CHUNK, MAX_ENTRIES, MAX_TOC
from ipfs_store.formats.names import Kind, estargz_footer
from ipfs_store.formats.reader import open_reader
from ipfs_store.formats.toc import Chunk
from tests.formats import hostile
from tests.formats.blobs import BytesBlob

MEMORY = 2 << 30
SECONDS = 60
DIGEST = "sha256:" + hashlib.sha256(b"x").hexdigest()


def gzip_zeros(size: int, head: bytes = b"") -> bytes:
    """A gzip member of ``head`` and ``size`` zeros, a thousandth of that long."""
    compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
    piece = bytes(4 << 20)
    return b"".join([compressor.compress(head), *(compressor.compress(piece) for _ in range(size // len(piece))), compressor.flush()])


def zstd_zeros(size: int) -> bytes:
    """A zstd frame of ``size`` zeros: blocks of four bytes for 128 KiB each (RFC 8878, section 3.1.1.2.2, "RLE_Block")."""
    block = ((128 << 10) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (1 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\x00\x58" + block * (size >> 17) + last


def open_blob(blob: bytes) -> None:
    trio.run(open_layer, BytesBlob(blob))


def decode(text: bytes, kind: Kind = "estargz") -> None:
    decode_toc(decode_document(text), kind=kind, digest=DIGEST, payload_end=1 << 40)


def gzip_toc() -> None:
    header = tarfile.TarInfo("stargz.index.json")
    header.size = 2 << 30
    open_blob(b"x" * 10 + gzip_zeros(1 << 30, header.tobuf()) + estargz_footer(10))


def zstd_toc() -> None:
    open_blob(
        hostile.zstd_chunked(b"", packed=zstd_zeros(64 << 30), position=(8 + len(zstandard.compress(hostile.CONTENT)), 2 << 20, MAX_TOC, 1))
    )


def gzip_chunk() -> None:
    assert decode_chunk("estargz", gzip_zeros(1 << 30), Chunk(0, 400, 0, 1 << 30, 0, DIGEST)) == bytes(400)


def zstd_chunk() -> None:
    assert decode_chunk("zstd:chunked", zstd_zeros(64 << 30), Chunk(0, 400, 0, 1 << 30, 0, DIGEST)) == bytes(400)


def largest_chunk() -> None:
    decode_chunk("zstd:chunked", zstd_zeros(64 << 30), Chunk(0, MAX_CHUNK, 0, 1 << 30, MAX_CHUNK, DIGEST))


def empty_members() -> None:
    decode_chunk("estargz", estargz_footer(0) * 2_000_000, Chunk(0, 400, 0, 1 << 30, 0, DIGEST))


def empty_frames() -> None:
    decode_chunk("zstd:chunked", hostile.skippable(b"") * 8_000_000, Chunk(0, 400, 0, 1 << 30, 0, DIGEST))


def entries() -> None:
    decode(b'{"version":1,"entries":[' + b"{}," * (MAX_TOC // 3 - 20) + b"{}]}")


def attributes_of_a_file() -> None:
    text = b",".join(b'"%d":""' % number for number in range(5_000_000))
    decode(b'{"version":1,"entries":[{"name":"a","type":"reg","xattrs":{' + text + b"}}]}")


def attributes_of_many_files() -> None:
    one = ",".join(f'"%x{number}":""' for number in range(60_000))
    text = ",".join(f'{{"name":"{file}","type":"reg","xattrs":{{{one.replace("%", str(file))}}}}}' for file in range(150)).encode()
    decode(b'{"version":1,"entries":[' + text + b"]}")


def wide_names() -> None:
    name = (("\U0001f4a3" + "a" * 200 + "/") * 19).encode()
    text = b",".join(b'{"name":"%s%d","type":"reg"}' % (name, number) for number in range(MAX_TOC // 4200))
    decode(b'{"version":1,"entries":[' + text + b"]}")


def half_characters() -> None:
    decode(b'{"version":1,"x":"\\udc80","entries":[' + b"[]," * (60 << 18) + b"[]]}")


def links_of_links() -> None:
    count = MAX_ENTRIES - 1
    text = ",".join(f'{{"name":"{number}","type":"hardlink","linkName":"{number + 1}"}}' for number in range(count))
    decode(b'{"version":1,"entries":[' + text.encode() + b',{"name":"%d","type":"reg"}]}' % count)


def circle_of_links() -> None:
    count = MAX_ENTRIES
    text = ",".join(f'{{"name":"{number}","type":"hardlink","linkName":"{(number + 1) % count}"}}' for number in range(count))
    decode(b'{"version":1,"entries":[' + text.encode() + b"]}")


def million_files() -> None:
    text = ",".join(
        f'{{"name":"folder-{number // 1000}/file-{number}","type":"reg","size":1000,"offset":{number * 500},"chunkDigest":"{DIGEST}"}}'
        for number in range(MAX_ENTRIES - 2000)
    ).encode()
    decode(b'{"version":1,"entries":[' + text + b"]}")


def holes() -> None:
    text = ",".join(
        f'{{"name":"{number}","type":"reg","size":{1 << 40},"chunkSize":{1 << 40},"chunkType":"zeros"}}' for number in range(100)
    ).encode()
    decode(b'{"version":1,"entries":[' + text + b"]}")


def plain(blob: bytes) -> None:
    async def work() -> None:
        await (await open_reader(BytesBlob(blob))).verify()

    trio.run(work)


def plain_zeros() -> None:
    header = tarfile.TarInfo("zeros")
    header.size = 4 << 30
    plain(gzip_zeros(1 << 30, header.tobuf(tarfile.GNU_FORMAT)))


def plain_header() -> None:
    header = tarfile.TarInfo("header")
    header.size, header.type = 1 << 33, tarfile.XHDTYPE
    plain(gzip_zeros(1 << 30, header.tobuf(tarfile.GNU_FORMAT)))


def plain_hole() -> None:
    header = tarfile.TarInfo("hole")
    header.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 61)}
    plain(header.tobuf(tarfile.PAX_FORMAT) + bytes(1024))


def plain_headers() -> None:
    header = tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)
    plain(zstandard.compress(header * (MAX_ENTRIES + 1)))


BOMBS: dict[str, Callable[[], None]] = {
    bomb.__name__: bomb
    for bomb in (
        gzip_toc, zstd_toc, gzip_chunk, zstd_chunk, largest_chunk, empty_members, empty_frames, entries, attributes_of_a_file,
        attributes_of_many_files, wide_names, half_characters, links_of_links, circle_of_links, million_files, holes,
        plain_zeros, plain_header, plain_hole, plain_headers,
    )
}  # fmt: skip


def main(name: str) -> None:
    """Run one bomb under the limits."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (2 * MEMORY, 2 * MEMORY))
    kind = message = ""
    try:
        BOMBS[name]()
    except IpfsStoreError as error:
        kind, message = type(error).__name__, error.message
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(json.dumps({"error": kind, "message": message, "peak": peak, "seconds": sum(resource.getrusage(resource.RUSAGE_SELF)[:2])}))


if __name__ == "__main__":
    main(sys.argv[1])
