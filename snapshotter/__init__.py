"""Images from IPFS as mounts: the containerd snapshotter, its FUSE data plane and the containerd client."""
