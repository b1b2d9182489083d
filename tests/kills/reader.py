"""``python reader.py ROOT MANIFEST STOP SEED``: read and walk ROOT until the file STOP is there; every byte and name has to be right.

Runs in a container, with a busybox in the image. MANIFEST is JSON: path -> [size, SHA-256 of the contents] for files, path -> null for folders. Prints that it has begun, and at the end what was done; an error is a traceback and status 1.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path


def main(root: Path, manifest: Path, stop: Path, seed: int) -> None:
    expected: dict[str, list[object] | None] = json.loads(manifest.read_text())
    files = {path: (int(str(entry[0])), str(entry[1])) for path, entry in expected.items() if entry is not None}
    names = sorted(files)
    dice = random.Random(seed)
    done: Counter[str] = Counter()
    slowest = 0.0
    # Held from beginning to end, over every kill.
    held = [(path, os.open(root / path, os.O_RDONLY)) for path in dice.sample(names, 4)]

    def whole(path: str) -> None:
        data = (root / path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == files[path], f"wrong bytes in {path}"

    def from_held(_: str) -> None:
        path, file = dice.choice(held)
        pieces = []
        for at in range(0, files[path][0], 65_536):
            pieces.append(os.pread(file, 65_536, at))
        assert hashlib.sha256(b"".join(pieces)).hexdigest() == files[path][1], f"wrong bytes in the open file {path}"

    def mapped(path: str) -> None:
        if files[path][0]:
            with open(root / path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
                assert hashlib.sha256(memory).hexdigest() == files[path][1], f"wrong bytes in the mapping of {path}"

    def walk(_: str) -> None:
        seen = set()
        for folder, folders, inside in os.walk(root, onerror=_raise):
            for name in folders:
                seen.add(os.path.relpath(os.path.join(folder, name), root))
            for name in inside:
                path = os.path.relpath(os.path.join(folder, name), root)
                seen.add(path)
                assert os.lstat(os.path.join(folder, name)).st_size == files[path][0], f"wrong size of {path}"
        assert seen == set(expected), sorted(seen ^ set(expected))[:5]

    def executed(path: str) -> None:
        done = subprocess.run(["/bin/busybox", "sha256sum", root / path], capture_output=True, text=True, check=True)
        assert done.stdout.split()[0] == files[path][1], f"busybox reads wrong bytes in {path}"

    print("begun", flush=True)
    while not stop.exists():
        action = dice.choices([walk, from_held, mapped, executed, whole], [1, 3, 3, 2, 8])[0]
        began = time.monotonic()
        action(dice.choice(names))
        slowest = max(slowest, time.monotonic() - began)
        done[action.__name__] += 1
        time.sleep(dice.random() * 0.05)
    print(json.dumps({"actions": sum(done.values()), "slowest": round(slowest, 2)}))


def _raise(error: OSError) -> None:
    raise error


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
