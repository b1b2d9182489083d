"""Commands and sources that other packages bring along, found by their entry points."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path


def entry_points(group: str) -> dict[str, str]:
    """Name -> ``module:attribute`` of every entry point of ``group``; of equal names the first on ``sys.path`` counts."""
    found: dict[str, str] = {}
    for listing in _listings(tuple(sys.path)):
        for name, target in _section(listing, group):
            found.setdefault(name, target)
    return found


@cache
def _listings(path: tuple[str, ...]) -> tuple[str, ...]:
    # importlib.metadata takes 50 ms to import, as long as all the rest of `ipfs-store --help`; these files take 2, once.
    folders = (Path(folder or ".") for folder in dict.fromkeys(path))
    return tuple(listing.read_text("utf-8") for folder in folders for listing in sorted(folder.glob("*.dist-info/entry_points.txt")))


def load(target: str) -> object:
    """The object that ``module:attribute`` names; raises ImportError or AttributeError."""
    module, _, attribute = target.partition(":")
    found: object = import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


def _section(text: str, group: str) -> Iterator[tuple[str, str]]:
    inside = False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            inside = line == f"[{group}]"
        elif inside and "=" in line and not line.startswith("#"):
            name, _, target = line.partition("=")
            yield name.strip(), target.split("[")[0].strip()
