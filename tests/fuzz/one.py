"""``python -m tests.fuzz.one TARGET [libFuzzer's arguments]``: one target, instrumented."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["ipfs_store", "snapshotter", "tests.fuzz"]):
    from ipfs_store.formats import entries
    from tests.fuzz.targets import TARGETS

entries.MAX_HOLES = 1 << 30  # a quarter of a million pieces of a hole only cost time

if __name__ == "__main__":
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
