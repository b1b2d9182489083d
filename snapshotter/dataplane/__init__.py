"""The FUSE file system and the process it runs in."""
