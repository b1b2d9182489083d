"""DAG-CBOR (ipld.io/specs/codecs/dag-cbor): canonical CBOR, links as tag 42 over a zero byte and the CID."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cbor2

from ipfs_store.cids import Cid, validate_cid
from ipfs_store.errors import InvalidCid, InvalidDag

_LINK_TAG = 42
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class CidLink:
    """A link inside of a DAG-CBOR value."""

    cid: Cid


def encode(value: Any) -> bytes:
    """The block of ``value``: None, bools, ints, text, bytes, lists, maps with text keys, CidLink. Raises InvalidDag."""
    return cbor2.dumps(_to_cbor(value, 0), canonical=True)


def decode(block: bytes) -> Any:
    """The value in ``block``; raises InvalidDag also for what CBOR allows and DAG-CBOR does not."""
    try:
        value = _from_cbor(cbor2.loads(block), 0)
    except (cbor2.CBORDecodeError, ValueError, TypeError, RecursionError, OverflowError, MemoryError) as error:
        raise InvalidDag(f"not DAG-CBOR: {str(error)[:120]}") from error
    # One value has one encoding: this catches bytes left over, indefinite lengths, long integers and unsorted keys at once.
    if encode(value) != block:
        raise InvalidDag("not DAG-CBOR: it is not in the canonical form")
    return value


def links(value: Any) -> Iterator[Cid]:
    """Every link in a decoded value, in order."""
    if isinstance(value, CidLink):
        yield value.cid
    elif isinstance(value, dict):
        for item in value.values():
            yield from links(item)
    elif isinstance(value, list):
        for item in value:
            yield from links(item)


def _to_cbor(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise InvalidDag(f"DAG-CBOR nested deeper than {_MAX_DEPTH}")
    if isinstance(value, CidLink):
        return cbor2.CBORTag(_LINK_TAG, b"\0" + value.cid)
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise InvalidDag("DAG-CBOR: a map has a key that is no text")
        return {key: _to_cbor(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_cbor(item, depth + 1) for item in value]
    if value is None or isinstance(value, bool | str | bytes) or (isinstance(value, int) and -(1 << 64) <= value < 1 << 64):
        return value
    raise InvalidDag(f"DAG-CBOR has no place for a {type(value).__name__} here")


def _from_cbor(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise InvalidDag(f"DAG-CBOR nested deeper than {_MAX_DEPTH}")
    if isinstance(value, cbor2.CBORTag):
        if value.tag != _LINK_TAG or not isinstance(value.value, bytes) or value.value[:1] != b"\0":
            raise InvalidDag(f"DAG-CBOR: tag {value.tag} is no link")
        try:
            return CidLink(validate_cid(value.value[1:]))
        except InvalidCid as error:
            raise InvalidDag(f"DAG-CBOR: a link that is no CID: {error}") from error
    if isinstance(value, dict):
        return {key: _from_cbor(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_cbor(item, depth + 1) for item in value]
    return value
