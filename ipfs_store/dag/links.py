"""Which blocks a block links to, whatever its codec."""

from __future__ import annotations

from ipfs_store.cids import DAG_CBOR, DAG_PB, RAW, Cid, codec_of, format_cid
from ipfs_store.dag import dagcbor, dagpb
from ipfs_store.errors import InvalidDag


def links_of(cid: Cid, block: bytes) -> list[Cid]:
    """The CIDs that ``block`` links to, in order; raises InvalidDag for a codec whose links we cannot see."""
    codec = codec_of(cid)
    if codec == RAW:
        return []
    if codec == DAG_PB:
        return [link.cid for link in dagpb.decode_node(block).links]
    if codec == DAG_CBOR:
        return list(dagcbor.links(dagcbor.decode(block)))
    raise InvalidDag(f"{format_cid(cid)}: the links of codec 0x{codec:x} are not known here")
