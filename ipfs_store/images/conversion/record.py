"""Records of what a container read, as `ctr-remote optimize --record-out` writes them: JSON objects with a path, one after the other."""

from __future__ import annotations

import json
from pathlib import Path

from ipfs_store.errors import InvalidInput

_MAX_RECORD = 256 << 20


def read_record(path: Path) -> tuple[str, ...]:
    """The paths, each once, in the order of the record; raises InvalidInput, OSError."""
    with path.open("rb") as file:
        data = file.read(_MAX_RECORD + 1)
    if len(data) > _MAX_RECORD:
        raise InvalidInput(f"{path} is over the limit of {_MAX_RECORD} bytes for a record")
    try:
        text = data.decode()
    except ValueError as error:
        raise InvalidInput(f"{path} is no record of paths: {error}") from error
    decoder, at, found = json.JSONDecoder(), 0, dict[str, None]()
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{path} is no record of paths: {error}") from error
        if not isinstance(value, dict) or not isinstance(value.get("path"), str):
            raise InvalidInput(f"{path} is no record of paths: it has {str(value)[:100]} instead of an object with a path")
        found[value["path"]] = None
    return tuple(found)
