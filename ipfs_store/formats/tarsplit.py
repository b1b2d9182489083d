"""tar-split: everything of a tar but its files' contents, so that the very same tar can be made of them again (vbatts/tar-split, ``tar/storage``).

Podman, Buildah and CRI-O take a zstd:chunked layer in parts only if it is there (containers/storage, ``pkg/chunked``).
"""

from __future__ import annotations

from binascii import b2a_base64

import fastcrc
import msgspec
import zstandard

_LEVEL = 3
_PIECE = 1 << 20
_encode = msgspec.json.Encoder().encode


class TarSplit:
    """Lines of JSON, compressed as they come: segments of the tar, and files with size and CRC-64 (ISO, as Go's ``crc64.ISO``)."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
        self._out: list[bytes] = []
        self._lines: list[bytes] = []
        self._pending = 0
        self._position = 0
        self._segment: list[bytes] = []
        self.size = 0
        """Bytes of the lines."""

    def segment(self, data: bytes) -> None:
        """Bytes of the tar; those between two files are one segment, padding of the first and headers of the second."""
        self._segment.append(data)

    def file(self, name: str, size: int, crc: int) -> None:
        """The entry whose headers were the last segment; ``crc`` of its contents."""
        self._close()
        payload = b'"%b"' % b2a_base64(crc.to_bytes(8, "big"), newline=False) if size else b"null"
        try:
            label = b'"name":%b,' % _encode(name)
        except UnicodeEncodeError:
            label = b'"name_raw":"%b",' % b2a_base64(name.encode("utf-8", "surrogateescape"), newline=False)
        length = b'"size":%d,' % size if size else b""
        self._line(b'{"type":1,%b%b"payload":%b,"position":%d}\n' % (label, length, payload, self._position))

    def finish(self) -> bytes:
        """All of it as one zstd frame."""
        self._close()
        self._flush()
        self._out.append(self._compressor.flush())
        return b"".join(self._out)

    def _close(self) -> None:
        data = b"".join(self._segment)
        self._segment.clear()
        for at in range(0, len(data), _PIECE):
            payload = b2a_base64(data[at : at + _PIECE], newline=False)
            self._line(b'{"type":2,"payload":"%b","position":%d}\n' % (payload, self._position))

    def _line(self, line: bytes) -> None:
        self._position += 1
        self._lines.append(line)
        self._pending += len(line)
        self.size += len(line)
        if self._pending >= _PIECE:
            self._flush()

    def _flush(self) -> None:
        self._out.append(self._compressor.compress(b"".join(self._lines)))
        self._lines, self._pending = [], 0


def crc64(data: bytes, before: int = 0) -> int:
    """CRC-64 (ISO) of what ``before`` is the CRC of, followed by ``data``."""
    return int(fastcrc.crc64.go_iso(data, before))
