"""``ipfs-store cat``."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import click

from ipfs_store.cli.command import Command
from ipfs_store.cli.names import complete
from ipfs_store.cli.settings import Settings, Size, timeout_option

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from ipfs_store.cids import Cid
    from ipfs_store.nodes.interface import Node
    from ipfs_store.oci import Platform

_PIECE = 8 << 20  # bytes: 32 leaves of 256 KiB, as many as are asked for at once


@click.command(
    "cat",
    cls=Command,
    short_help="Write a file of an image, or the file behind a CID.",
    examples="""
    ipfs-store cat debian:12 /etc/os-release          # of an image, by name or CID; only what holds the file is fetched
    ipfs-store cat CID                                # what the CID itself is: an image's descriptor, as JSON
    ipfs-store cat -o layer.tar.gz CID                # into a file, which appears when it is whole
    ipfs-store cat --offset 1MiB --length 4096 CID    # a part; only the blocks that hold it are fetched
    """,
)
@click.argument("cid", metavar="CID|NAME", shell_complete=complete)
@click.argument("path", required=False)
@click.option("-o", "--output", type=click.Path(dir_okay=False), default="-", metavar="FILE", help="Where to, instead of standard output.")
@click.option("--offset", type=Size(), default=0, metavar="SIZE", help="Where to begin.")
@click.option("--length", type=Size(), metavar="SIZE", help="How much at most [to the end].")
@click.option("--platform", metavar="OS/ARCH", help="Of an image for several [this machine's].")
@timeout_option
@click.pass_obj
def command(
    settings: Settings,
    cid: str,
    path: str | None,
    output: str,
    offset: int,
    length: int | None,
    platform: str | None,
    timeout: float | None,
) -> None:
    """Write the file PATH of an image, or without PATH the file (UnixFS or raw block) that is behind CID.

    Everything is checked before it is written: blocks against their CIDs, a file's chunks against the table of contents.
    """
    import sys

    from ipfs_store.cli.output import whole_file
    from ipfs_store.oci.platform import parse_platform

    platforms = () if platform is None else (parse_platform(platform),)

    async def copy(node: Node, target: BinaryIO) -> None:
        from contextlib import aclosing

        import trio

        from ipfs_store.images.catalog import find

        found = await find(node, cid)
        pieces = _behind(node, found, offset, length) if path is None else _inside(node, found, path, platforms, offset, length)
        async with aclosing(pieces):
            async for piece in pieces:
                await trio.to_thread.run_sync(target.write, piece)

    if output == "-":
        target = sys.stdout.buffer
        settings.within(timeout).run(lambda node: copy(node, target))
        target.flush()
    else:
        with whole_file(output) as file:
            settings.within(timeout).run(lambda node: copy(node, file))


async def _behind(node: Node, cid: Cid, offset: int, length: int | None) -> AsyncGenerator[bytes, None]:
    from ipfs_store.cids import format_cid
    from ipfs_store.dag.file import UnixfsFile
    from ipfs_store.errors import InvalidInput

    file = await UnixfsFile.open(node.get, cid)
    if offset > file.size:
        raise InvalidInput(f"offset {offset} is behind the end of {format_cid(cid)}, which has {file.size} bytes")
    end = file.size if length is None else min(offset + length, file.size)
    for start in range(offset, end, _PIECE):
        yield await file.read(start, min(_PIECE, end - start))


async def _inside(
    node: Node, cid: Cid, path: str, platforms: tuple[Platform, ...], offset: int, length: int | None
) -> AsyncGenerator[bytes, None]:
    from contextlib import aclosing

    from ipfs_store.images.layer_files import open_files

    async with open_files(node, cid, platforms=platforms) as files, aclosing(files.read(files.find(path), offset, length)) as pieces:
        async for piece in pieces:
            yield piece
