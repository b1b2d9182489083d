"""DAG-CBOR, dag-pb and CAR from bytes."""

import contextlib

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_store.cids import RAW, cid_of
from ipfs_store.dag import dagcbor, dagpb
from ipfs_store.dag.car import CarReader, car_frame, car_header
from ipfs_store.dag.dagcbor import CidLink
from ipfs_store.errors import BlockMismatch, InvalidDag

cids = st.binary(max_size=20).map(lambda data: cid_of(RAW, data))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 64), (1 << 64) - 1) | st.text() | st.binary() | cids.map(CidLink),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=20,
)


@given(values)
def test_dag_cbor_reads_back_what_it_wrote(value: object) -> None:
    assert dagcbor.decode(dagcbor.encode(value)) == value


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\xff",
        cbor2.dumps(1.5),
        cbor2.dumps({1: 2}),
        cbor2.dumps(cbor2.CBORTag(42, b"\x01")),
        cbor2.dumps(cbor2.CBORTag(1, 0)),
        b"\x18\x01",  # 1 in two bytes
        b"\x9f\xff",  # a list of indefinite length
        b"\xa2\x61b\x01\x61a\x02",  # keys out of order
        b"\x01\x01",  # a second value behind the first
        b"\x81" * 500 + b"\x01",
    ],
)
def test_cbor_that_dag_cbor_forbids_is_refused(block: bytes) -> None:
    with pytest.raises(InvalidDag):
        dagcbor.decode(block)


@given(st.lists(st.tuples(cids, st.text(max_size=5), st.integers(0, 1 << 40)), max_size=5), st.none() | st.binary(max_size=30))
def test_dag_pb_reads_back_what_it_wrote(links: list[tuple[bytes, str, int]], data: bytes | None) -> None:
    node = dagpb.Node(tuple(dagpb.Link(*link) for link in links), data)  # type: ignore[arg-type]
    assert dagpb.decode_node(dagpb.encode_node(node.links, node.data)) == node


@given(st.binary(max_size=200))
def test_any_bytes_are_a_dag_pb_node_or_refused(block: bytes) -> None:
    with contextlib.suppress(InvalidDag):
        dagpb.decode_node(block)


@given(st.lists(st.binary(max_size=300), max_size=6), st.integers(1, 50))
def test_a_car_reads_back_however_its_bytes_arrive(blocks: list[bytes], step: int) -> None:
    items = [(cid_of(RAW, block), block) for block in blocks]
    car = car_header([cid for cid, _ in items[:1]]) + b"".join(car_frame(*item) for item in items)
    reader = CarReader()
    got = [item for start in range(0, len(car), step) for item in reader.feed(car[start : start + step])]
    reader.close()
    assert got == items
    assert reader.roots == [cid for cid, _ in items[:1]]


def test_a_car_that_is_cut_or_lies_is_refused() -> None:
    cid = cid_of(RAW, b"block")
    car = car_header([cid]) + car_frame(cid, b"block")
    for end in range(len(car)):
        reader = CarReader()
        assert list(reader.feed(car[:end])) == []
        if end != len(car_header([cid])):
            with pytest.raises(InvalidDag):
                reader.close()
    with pytest.raises(BlockMismatch):
        list(CarReader().feed(car_header([cid]) + car_frame(cid, b"other")))
    with pytest.raises(InvalidDag):  # a length of 4 GiB is refused before anything is held for it
        list(CarReader().feed(car_header([cid]) + b"\x80\x80\x80\x80\x10"))
    with pytest.raises(InvalidDag):
        list(CarReader().feed(b"\xff" * 20))
