"""Seeds, and what fuzzing once found, through every target: none of it may bring more than an error that a user can read."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from ipfs_store.errors import IpfsStoreError
from tests.fuzz.targets import TARGETS

FOUND = Path(__file__).parent / "found"


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_former_findings_are_taken_or_refused(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds():
        target(seed)
    for path in sorted((FOUND / name).glob("*")):
        target(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_each_target_has_a_seed_that_decodes(name: str) -> None:
    target = TARGETS[name]
    taken = 0
    for seed in target.seeds():
        with contextlib.suppress(IpfsStoreError):
            target.check(seed)
            taken += 1
    assert taken, "every seed is refused: the fuzzer would not get past the first check"
