"""The ``ipfs-store`` command line."""
