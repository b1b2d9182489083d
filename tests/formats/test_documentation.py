"""The examples of docs/formats.md run, one after the other, as they stand there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/formats.md"


def test_every_example_runs(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(source, tmp_path / "layer.tar")
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) == 3
    names: dict[str, object] = {"__name__": "examples"}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert "b'vector\\n'" in printed and "0755    300000 usr/bin/tool" in printed


def test_every_module_that_the_page_names_is_there() -> None:
    folder = PAGE.parents[1] / "ipfs_store/formats"
    named = set(re.findall(r"`([a-z]+)[.`]", PAGE.read_text()))
    assert {"reader", "layer", "toc", "chunks", "detached", "scan", "writer", "entries", "footer", "zstdframes"} <= named
    for name in (
        "reader",
        "layer",
        "toc",
        "chunks",
        "detached",
        "scan",
        "writer",
        "document",
        "entries",
        "footer",
        "names",
        "headers",
        "tarsplit",
    ):
        assert (folder / f"{name}.py").exists(), name
