"""A table of contents of 30,000 entries: decoded, held, and searched, beside json.loads of the same text and a scan of the same chunks."""

from __future__ import annotations

import gc
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ipfs_store.formats.document import decode_document
from ipfs_store.formats.entries import decode_toc
from ipfs_store.formats.toc import Entry, Toc
from scripts.benchmarks.rows import Row

ENTRIES = 30_000
_FOLDER = 12  # entries in a directory, itself included: Debian roots have 8 to 14
_REPEATS = 7


def document() -> bytes:
    """The TOC as the reference writes it (indented, a digest for each file and chunk), of files like a distribution's."""
    entries: list[dict[str, object]] = []
    for number in range(ENTRIES):
        folder = f"usr/share/package-{number // 100}/module-{number // _FOLDER}"
        common = {"modtime": f"2026-{1 + number % 12:02d}-{1 + number % 28:02d}T10:{number % 60:02d}:00Z"}
        if number % _FOLDER == 0:
            entries.append({"name": f"{folder}/", "type": "dir", "mode": 0o40755, **common})
            continue
        digest = "sha256:" + hashlib.sha256(str(number).encode()).hexdigest()
        place = {"size": 1000 + number, "offset": 600 * number, "digest": digest, "chunkDigest": digest}
        entries.append({"name": f"{folder}/file-{number}.py", "type": "reg", "mode": 0o100644, **common, **place})
    return json.dumps({"version": 1, "entries": entries}, indent="\t").encode()


def decode(data: bytes) -> Toc:
    """What opening a layer does with it, but for decompression."""
    return decode_toc(decode_document(data), kind="estargz", digest="sha256:" + "0" * 64, payload_end=1 << 40)


def run() -> list[Row]:
    """The rows."""
    data = document()
    ours, reference = _paired(lambda: decode(data), lambda: json.loads(data))
    found, scanned = _search()
    case = f"TOC of {ENTRIES:,} entries"
    return [
        Row(case, "CPU seconds to decode", ours, None, 0.4),
        Row(case, "the same, reference json.loads", ours, reference, None),
        Row(case, "MB held", _held("decode"), None, 30.0),
        Row(case, "the same, reference json.loads", _held("json"), None, None),
        Row("a chunk of 10,000 in a file", "us to find, reference a scan", found * 1e6, scanned * 1e6, 0.1),
    ]


def _paired(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """The processor's seconds of both, taken in turn, the least of several: what other processes do to the clock is not ours."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_REPEATS):
        for work, taken in zip((first, second), times, strict=True):
            gc.collect()
            begin = time.process_time()
            work()
            taken.append(time.process_time() - begin)
    return min(times[0]), min(times[1])


def _search() -> tuple[float, float]:
    size, digest = 4096, "sha256:" + "0" * 64
    chunks = [
        {"name": "f", "type": "chunk", "offset": n, "chunkOffset": n * size, "chunkSize": size, "chunkDigest": digest}
        for n in range(10_000)
    ]
    chunks[0] |= {"type": "reg", "size": size * len(chunks)}
    entry = decode(json.dumps({"version": 1, "entries": chunks}).encode()).by_path["f"]
    places = range(0, entry.size, entry.size // 50)

    def scan(entry: Entry, offset: int) -> None:
        next(chunk for chunk in entry.chunks if chunk.file_offset <= offset < chunk.file_offset + chunk.size)

    ours, reference = _paired(lambda: [entry.chunks_of(at, 1) for at in places], lambda: [scan(entry, at) for at in places])
    return ours / len(places), reference / len(places)


def _held(what: str) -> float:
    """MB that a process has more once it holds the result and has let go of the text."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(document())
        file.flush()
        done = subprocess.run([sys.executable, "-m", "scripts.benchmarks.toc", what, file.name], check=True, capture_output=True, text=True)
    return float(done.stdout)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * 4096


if __name__ == "__main__":
    text = Path(sys.argv[2]).read_bytes()
    before = _resident() - len(text)
    kept = decode(text) if sys.argv[1] == "decode" else json.loads(text)
    del text
    gc.collect()
    print((_resident() - before) / 1e6)
