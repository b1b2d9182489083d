"""Which image of an index runs where, as containerd chooses."""

from __future__ import annotations

import os

import pytest

from ipfs_store.errors import InvalidReference
from ipfs_store.oci.platform import best_match, default_platform, normalise_platform, parse_platform, same_platform, select


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("Linux/AMD64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/i386", "linux/386"),
        ("macos/arm64", "darwin/arm64"),
        ("linux/newarch", "linux/newarch"),
    ],
)
def test_platforms_have_one_form(text: str, normal: str) -> None:
    assert str(parse_platform(text)) == normal
    assert str(normalise_platform(parse_platform(normal))) == normal


def test_one_word_is_completed_from_this_machine() -> None:
    here = default_platform()
    assert parse_platform(here.architecture) == here
    assert parse_platform("linux").architecture == here.architecture
    assert here.os == os.uname().sysname.lower()


@pytest.mark.parametrize("text", ["", "/", "linux/", "linux//v8", "a/b/c/d", "nonsense", "linux/a b", "linux/../x"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse_platform(text)


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/amd64", ["linux/386"], 0),
        ("linux/amd64", ["linux/amd64/v2", "linux/amd64/v3"], None),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2"], 1),
        ("linux/arm64", ["linux/arm/v7", "linux/arm/v6"], 0),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], 1),
        ("linux/arm64", ["linux/arm64/v9"], None),
        ("linux/arm64/v9", ["linux/arm64/v8"], 0),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v5"], 1),
        ("linux/arm/v6", ["linux/arm/v7"], None),
        ("linux/386", ["linux/amd64"], None),
        ("linux/amd64", ["windows/amd64"], None),
        ("linux/amd64", [], None),
    ],
)
def test_the_best_that_runs_is_chosen(wanted: str, offered: list[str], chosen: int | None) -> None:
    assert best_match(parse_platform(wanted), [parse_platform(text) for text in offered]) == chosen


def test_an_attestation_without_a_platform_is_never_chosen() -> None:
    assert best_match(parse_platform("linux/amd64"), [None, parse_platform("linux/amd64")]) == 1


def test_a_selection_keeps_the_order_of_the_index_and_names_each_once() -> None:
    offered = [parse_platform(text) for text in ("linux/arm64", "linux/amd64", "linux/s390x")]
    wanted = [parse_platform(text) for text in ("linux/s390x", "linux/amd64", "linux/amd64/v2", "linux/riscv64")]
    assert select(wanted, offered) == [1, 2]


def test_spelling_does_not_matter_in_comparison() -> None:
    assert same_platform(parse_platform("linux/arm64/v8"), parse_platform("linux/aarch64"))
