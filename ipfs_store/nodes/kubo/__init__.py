"""A Kubo daemon as a node, through its RPC (docs.ipfs.tech/reference/kubo/rpc) and its gateway."""

from ipfs_store.nodes.kubo.address import ApiAddress, find_api, parse_api
from ipfs_store.nodes.kubo.node import KuboNode

__all__ = ["ApiAddress", "KuboNode", "find_api", "parse_api"]
