"""The ``ipfs-store`` command line.

A command that only prints answers within 60 ms of which the interpreter takes 15 and click 40, so nothing here imports a
node, a format or trio at the top: each command is a module of ``commands``, loaded when it is named, and imports the rest when it runs.
"""

from __future__ import annotations

import gc
import sys

__all__ = ["main"]

_YOUNG = 50_000
"""New objects, less those that are gone, after which Python looks for cycles among them. At its own 700 it does so a hundred times while a
command imports what it needs, and finds nothing: those are objects that stay."""


def main() -> int:
    """Run the command in ``sys.argv``; returns the exit status: 0, 1 (it failed), 2 (usage), 130 (Ctrl-C), 141 (nobody reads the output)."""
    if sys.argv[1:] == ["--version"]:
        from ipfs_store import __version__

        print(f"ipfs-store {__version__}")
        return 0
    gc.set_threshold(_YOUNG)
    from ipfs_store.cli.run import run

    try:
        return run(sys.argv[1:])
    finally:
        gc.freeze()  # or the interpreter's end looks through all of them once more: with the line above, a quarter of a short command
