"""Where the time goes while the metadata of a native layer of 30,000 entries are built: `snapshotter.metadata.kept.build` step by step.

In a fork of a warm process, as the data plane's workers do it; for each step the least of several runs.
"""

from __future__ import annotations

import gc
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from ipfs_store.erofs import write_image
from scripts.benchmarks.rows import Row
from scripts.benchmarks.toc import ENTRIES, decode, document
from snapshotter.metadata.beside import gathering
from snapshotter.metadata.build import build_tree
from snapshotter.metadata.contentid import make_scope
from snapshotter.metadata.index import of_image
from snapshotter.metadata.kept import write_pair

_TIMES = 7
_LAYER = "sha256:" + "0" * 64
_Spent = dict[str, tuple[float, float]]


def run() -> list[Row]:
    """The rows."""
    text = document()
    with tempfile.TemporaryDirectory(prefix="bench-stages-", dir="/var/tmp") as top:
        runs = [_forked(text, Path(top, str(number))) for number in range(_TIMES)]
    rows = [Row(f"TOC of {ENTRIES:,} entries: {name}", "seconds", min(spent[name][0] for spent in runs)) for name in runs[0]]
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

    toc = decode(text)
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
