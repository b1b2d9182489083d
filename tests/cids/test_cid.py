"""CIDs: the edge where people write them, and the bytes inside."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_store.cids import DAG_PB, RAW, cid_of, codec_of, format_cid, parse_cid, validate_cid, verify_block
from ipfs_store.errors import BlockMismatch, InvalidCid

# `ipfs add` of b"hello\n"
V0 = "QmZULkCELmmk5XNfCgTnCyFgAVxBRBXyDHGGMVoLFLiXEN"
V1_RAW = "bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am"


@given(st.binary(max_size=1000))
def test_what_is_printed_parses_back(data: bytes) -> None:
    cid = cid_of(RAW, data)
    assert parse_cid(format_cid(cid)) == parse_cid(f"ipfs://{format_cid(cid)}") == cid
    verify_block(cid, data)
    with pytest.raises(BlockMismatch):
        verify_block(cid, data + b"x")


def test_kubo_prints_the_same_cid() -> None:
    assert format_cid(cid_of(RAW, b"hello\n")) == V1_RAW


def test_a_cid_of_version_0_is_kept_as_version_1() -> None:
    cid = parse_cid(V0)
    assert codec_of(cid) == DAG_PB
    assert format_cid(cid).startswith("bafybei")


@pytest.mark.parametrize("text", ["", "hello", "bafy", V0[:-1], V1_RAW + "a", "ipfs://", "sha256:" + "0" * 64, "b" * 5000, "\0"])
def test_what_is_no_cid_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(InvalidCid) as caught:
        parse_cid(text)
    assert caught.value.hint
    assert "\n" not in caught.value.message


@given(st.binary(max_size=60))
def test_bytes_are_a_cid_or_refused(raw: bytes) -> None:
    with contextlib.suppress(InvalidCid):
        assert validate_cid(raw)[0] == 1
