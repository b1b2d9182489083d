"""IPLD: UnixFS files over dag-pb, DAG-CBOR, CARv1. Encoders and decoders of bytes, and readers that are given ``get_block``."""
