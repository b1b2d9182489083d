"""Where the time goes while the metadata of a native layer of 30,000 files are built: `snapshotter.metadata.kept.build` step by step.

In a fork of a warm process, as the data plane's workers do it; for each step the least of several runs.
"""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from ipfs_store.erofs import write_image
from ipfs_store.formats.document import Item, decode_document, encode_document
from ipfs_store.formats.entries import decode_toc
from scripts.benchmarks.rows import Row
from snapshotter.metadata.beside import gathering
from snapshotter.metadata.build import build_tree
from snapshotter.metadata.contentid import make_scope
from snapshotter.metadata.index import of_image
from snapshotter.metadata.kept import write_pair

_FILES, _IN_FOLDER = 30_000, 40
_TIMES = 7
_LAYER = "sha256:" + "0" * 64
_Spent = dict[str, tuple[float, float]]


def document() -> bytes:
    """The TOC of the files that ``scripts/bench dataplane`` mounts, as a push writes it."""
    items = []
    for number in range(_FILES):
        folder = f"d{number // _IN_FOLDER}"
        if not number % _IN_FOLDER:
            items.append(Item(name=f"{folder}/", type="dir", mod_time="2020-09-13T12:26:40Z", mode=0o755))
        digest = "sha256:" + hashlib.sha256(b"%d" % number).hexdigest()
        items.append(
            Item(
                name=f"{folder}/n0-{number}", type="reg", size=3 + len(str(number)), mod_time="2020-09-13T12:26:40Z", mode=0o644,
                offset=100 + 110 * number, digest=digest, chunk_digest=digest,
            )
        )  # fmt: skip
    return encode_document(items)


def run() -> list[Row]:
    """The rows."""
    text = document()
    with tempfile.TemporaryDirectory(prefix="bench-stages-", dir="/var/tmp") as top:
        runs = [_forked(text, Path(top, str(number))) for number in range(_TIMES)]
    rows = [Row(f"TOC of {_FILES:,} files: {name}", "seconds", min(spent[name][0] for spent in runs)) for name in runs[0]]
    rows.append(Row("the whole of it", "seconds", min(sum(wall for wall, _ in spent.values()) for spent in runs)))
    rows.append(
        Row("the same", "processor seconds, not of the process beside", min(sum(cpu for _, cpu in spent.values()) for spent in runs))
    )
    return rows


def _forked(text: bytes, folder: Path) -> _Spent:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_build, args=(theirs, text, folder))
    process.start()
    spent: _Spent = ours.recv()
    process.join()
    return spent


def _build(channel: Connection, text: bytes, folder: Path) -> None:
    gc.freeze()
    gc.disable()
    spent: _Spent = {}
    last = time.perf_counter(), time.process_time()

    def mark(name: str) -> None:
        nonlocal last
        now = time.perf_counter(), time.process_time()
        spent[name] = now[0] - last[0], now[1] - last[1]
        last = now

    toc = decode_toc(decode_document(text), kind="estargz", digest=_LAYER, payload_end=1 << 30)
    mark("decoded")
    with gathering(toc.entries, scope=make_scope(b"", ""), layer=_LAYER, kind="estargz") as beside:
        mark("forked")
        tree = build_tree(toc)
        mark("made a tree")

        def redirect() -> None:
            mark("image laid out")
            redirects = beside.redirects()
            mark("waited for contents' ids")
            tree.lead(redirects)

        image = write_image(tree.root, redirect)
        mark("image encoded")
        index = beside.index()
        mark("waited for the index")
    write_pair(folder, image, of_image(index, image))
    mark("written")
    channel.send(spent)
