"""``ipfs-store ls``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ipfs_store.cli.command import Command
from ipfs_store.cli.names import complete
from ipfs_store.cli.settings import Settings, timeout_option

if TYPE_CHECKING:
    from ipfs_store.formats.toc import Entry
    from ipfs_store.images.filesystem import File
    from ipfs_store.nodes.interface import Node

_LETTERS = {"dir": "d", "reg": "-", "symlink": "l", "char": "c", "block": "b", "fifo": "p"}


@click.command(
    "ls",
    cls=Command,
    short_help="List files of an image.",
    examples="""
    ipfs-store ls CID /etc              # of an image on another machine too; only its tables of contents are fetched
    ipfs-store ls -l debian:12 /bin     # modes, owners, sizes, times, targets of links
    ipfs-store ls -R --json CID         # every file, for programs
    """,
)
@click.argument("image", metavar="CID|NAME", shell_complete=complete)
@click.argument("path", default="/")
@click.option("-l", "long", is_flag=True, help="Modes, owners, sizes and times too.")
@click.option("-R", "recursive", is_flag=True, help="What lies below directories too, by whole paths.")
@click.option("-d", "itself", is_flag=True, help="A directory itself, not what is in it.")
@click.option("--platform", metavar="OS/ARCH", help="Of several [this machine's].")
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.pass_obj
def command(
    settings: Settings, image: str, path: str, long: bool, recursive: bool, itself: bool, platform: str | None, timeout: float | None,
    as_json: bool,
) -> None:  # fmt: skip
    """List what lies in the directory PATH of an image, as a container of it sees it, or the file that PATH is.

    Of layers that can be read lazily only the table of contents is fetched; others are fetched whole.
    """
    import os
    import sys

    from ipfs_store.oci.platform import parse_platform

    platforms = () if platform is None else (parse_platform(platform),)

    async def work(node: Node) -> list[File]:
        from ipfs_store.images.catalog import find
        from ipfs_store.images.layer_files import open_files

        async with open_files(node, await find(node, image), platforms=platforms) as files:
            found = files.find(path)
            if found.entry.type != "dir" or itself:
                return [files.find(path, follow=False)]
            return list(files.below(found.entry.path)) if recursive else files.children(found.entry.path)

    found = settings.within(timeout).run(work)
    if as_json:
        import json

        click.echo(json.dumps([_value(file) for file in found], indent=2))
        return
    out = sys.stdout.buffer
    for file in found:
        whole = recursive or itself or len(found) == 1
        shown = f"/{file.entry.path}" if whole else file.entry.path.rpartition("/")[2]
        line = _long(file.entry, shown) if long else shown
        out.write(os.fsencode(line.replace("\n", "?")) + b"\n")  # a name may hold bytes that are no text
    out.flush()


def _value(file: File) -> dict[str, Any]:
    entry = file.entry
    value: dict[str, Any] = {
        "path": f"/{entry.path}", "type": entry.type, "mode": f"{entry.mode:04o}", "uid": entry.uid, "gid": entry.gid,
        "size": entry.size, "mtime": entry.mtime, "layer": file.layer,
    }  # fmt: skip
    if entry.link:
        value["link"] = entry.link
    if entry.digest:
        value["digest"] = entry.digest
    if entry.xattrs:
        value["xattrs"] = {name: data.hex() for name, data in entry.xattrs.items()}
    return value


def _long(entry: Entry, shown: str) -> str:
    from datetime import UTC, datetime

    bits = "".join(letter if entry.mode >> (8 - number) & 1 else "-" for number, letter in enumerate("rwxrwxrwx"))
    for at, mask, letter in ((2, 0o4000, "s"), (5, 0o2000, "s"), (8, 0o1000, "t")):
        if entry.mode & mask:
            bits = bits[:at] + (letter if bits[at] == "x" else letter.upper()) + bits[at + 1 :]
    size = f"{entry.dev_major}, {entry.dev_minor}" if entry.type in ("char", "block") else str(entry.size)
    try:
        time = f"{datetime.fromtimestamp(entry.mtime, UTC):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):
        time = str(entry.mtime)
    target = f" -> {entry.link}" if entry.type == "symlink" else ""
    return f"{_LETTERS.get(entry.type, '?')}{bits} {entry.uid:>5} {entry.gid:>5} {size:>11} {time} {shown}{target}"
