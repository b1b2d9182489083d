"""The configuration is checked as a whole, and says what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipfs_store.errors import InvalidInput
from snapshotter.daemon.config import DEFAULT_TOML, Config, load_config, parse_size


def test_what_is_printed_to_begin_with_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(DEFAULT_TOML)
    assert load_config(tmp_path / "c.toml") == Config()
    assert Config().cache_bytes == 10 << 30


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("roto = '/x'", "unknown key 'roto'", "did you mean 'root'?"),
        ("[node]\npears = []", "unknown key 'node.pears'", "did you mean 'peers'?"),
        ("[cache]\nxyz = 1", "unknown key 'cache.xyz'", "known: max_bytes, reserve, scope, verify"),
        ("root = 5", "root", None),
        ("root = 'relative'", "absolute", None),
        ("log_level = 'loud'", "log_level", None),
        ("[cache]\nmax_bytes = 'lots'", "is no size", 'write bytes, or text such as "512MiB" or "10GiB"'),
        ("[dataplane]\ngive_up = -1", "give_up", None),
        ("this is no TOML", "cannot be read", None),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, message: str, hint: str | None) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(InvalidInput, match=message) as raised:
        load_config(tmp_path / "c.toml")
    assert hint is None or raised.value.hint == hint


def test_a_file_that_was_named_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no configuration file"):
        load_config(tmp_path / "missing.toml")


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("4KiB", 4096), ("512M", 512 << 20), ("10 GiB", 10 << 30), (7, 7)])
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size
