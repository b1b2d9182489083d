"""Images in IPFS: formats, DAGs, nodes and names. Knows nothing of FUSE, gRPC or containerd, and needs no root."""

__version__ = "0.1.0"
