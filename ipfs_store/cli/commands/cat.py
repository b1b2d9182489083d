"""``ipfs-store cat``."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import click

from ipfs_store.cli.command import Command
from ipfs_store.cli.settings import Settings, Size, timeout_option

if TYPE_CHECKING:
    from ipfs_store.cids import Cid
    from ipfs_store.nodes.interface import Node

_PIECE = 8 << 20  # bytes: 32 leaves of 256 KiB, as many as are asked for at once


@click.command(
    "cat",
    cls=Command,
    short_help="Write the file behind a CID, or a part of it.",
    examples="""
    ipfs-store cat CID                                # an image's descriptor, as JSON
    ipfs-store cat -o layer.tar.gz CID                # into a file, which appears when it is whole
    ipfs-store cat --offset 1MiB --length 4096 CID    # a part; only the blocks that hold it are fetched
    """,
)
@click.argument("cid")
@click.option("-o", "--output", type=click.Path(dir_okay=False), default="-", metavar="FILE", help="Where to, instead of standard output.")
@click.option("--offset", type=Size(), default=0, metavar="SIZE", help="Where to begin.")
@click.option("--length", type=Size(), metavar="SIZE", help="How much at most [to the end].")
@timeout_option
@click.pass_obj
def command(settings: Settings, cid: str, output: str, offset: int, length: int | None, timeout: float | None) -> None:
    """Write the file (UnixFS or raw block) behind CID; every block is checked against its CID before its bytes are written."""
    import sys

    from ipfs_store.cids import parse_cid
    from ipfs_store.cli.output import whole_file

    wanted = parse_cid(cid)
    if output == "-":
        target = sys.stdout.buffer
        settings.within(timeout).run(lambda node: _copy(node, wanted, offset, length, target))
        target.flush()
    else:
        with whole_file(output) as file:
            settings.within(timeout).run(lambda node: _copy(node, wanted, offset, length, file))


async def _copy(node: Node, cid: Cid, offset: int, length: int | None, target: BinaryIO) -> None:
    import trio

    from ipfs_store.cids import format_cid
    from ipfs_store.dag.file import UnixfsFile
    from ipfs_store.errors import InvalidInput

    file = await UnixfsFile.open(node.get, cid)
    if offset > file.size:
        raise InvalidInput(f"offset {offset} is behind the end of {format_cid(cid)}, which has {file.size} bytes")
    end = file.size if length is None else min(offset + length, file.size)
    for start in range(offset, end, _PIECE):
        piece = await file.read(start, min(_PIECE, end - start))
        await trio.to_thread.run_sync(target.write, piece)
