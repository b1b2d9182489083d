"""Which entries of a layer are files that are shown, and what the others mean (image-spec, layer.md, "Whiteouts").

``.wh.NAME`` takes away what lower layers have as NAME, ``.wh..wh..opq`` all that they have in its directory; no other name that begins with
``.wh..wh.`` is shown, nor anything below one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ipfs_store.formats.toc import Entry

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_HIDDEN = ".wh..wh."


class Shown:
    """One walk over a layer's entries; what is gathered beside it is complete at its end."""

    def __init__(self) -> None:
        self.links: dict[str, str] = {}
        """Hard links: path and target."""
        self.whiteouts: list[tuple[str, str, Entry]] = []
        """Directory, the name that is taken away in it, and the entry that says so."""
        self.opaque: set[str] = set()
        """Directories."""

    def walk(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, str, str]]:
        """Each entry that is a file (or a directory, ...) by itself, with the path of its directory and its name."""
        hidden: set[str] = set()
        for entry in entries:
            folder, _, name = entry.path.rpartition("/")
            if hidden and folder in hidden:
                hidden.add(entry.path)
            elif name.startswith(_WHITEOUT):
                if name == _OPAQUE:
                    self.opaque.add(folder)
                else:
                    hidden.add(entry.path)
                    if not name.startswith(_HIDDEN) and name != _WHITEOUT:
                        self.whiteouts.append((folder, name.removeprefix(_WHITEOUT), entry))
            elif entry.type == "hardlink":
                self.links[entry.path] = entry.link
            else:
                yield entry, folder, name
