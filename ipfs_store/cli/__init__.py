"""The ``ipfs-store`` command line.

A command that only prints answers within 60 ms of which the interpreter takes 15 and click 40, so nothing here imports a
node, a format or trio at the top: each command is a module of ``commands``, loaded when it is named, and imports the rest when it runs.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command in ``sys.argv``; returns the exit status: 0, 1 (it failed), 2 (usage), 130 (Ctrl-C), 141 (nobody reads the output)."""
    if sys.argv[1:] == ["--version"]:
        from ipfs_store import __version__

        print(f"ipfs-store {__version__}")
        return 0
    from ipfs_store.cli.run import run

    return run(sys.argv[1:])
