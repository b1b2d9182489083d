"""``ipfs-store get-toc-digest``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from ipfs_store.cli.command import Command
from ipfs_store.cli.settings import Settings, timeout_option

if TYPE_CHECKING:
    from ipfs_store.nodes.interface import Node


@click.command(
    "get-toc-digest",
    cls=Command,
    short_help="Print the TOC digest of an eStargz layer.",
    examples="""
    ipfs-store get-toc-digest layer.tar.gz    # a file
    ipfs-store get-toc-digest CID             # a layer in IPFS; only its TOC is fetched
    """,
)
@click.argument("layer", metavar="FILE|CID")
@timeout_option
@click.pass_obj
def command(settings: Settings, layer: str, timeout: float | None) -> None:
    """Print the digest of the table of contents of a lazily readable layer, which a descriptor names in its annotations.

    The TOC is read and has to be sound.
    """
    if Path(layer).exists():
        click.echo(_of_file(Path(layer)))
        return
    from ipfs_store.cids import parse_cid
    from ipfs_store.errors import ImageNotFound, InvalidCid

    try:
        cid = parse_cid(layer)
    except InvalidCid as error:
        if "/" in layer.removeprefix("ipfs://").removeprefix("/ipfs/") or "." in layer:
            raise ImageNotFound(f"{layer[:300]}: no such file, and no CID") from error
        raise

    async def digest(node: Node) -> str:
        from ipfs_store.dag.file import UnixfsFile
        from ipfs_store.formats.layer import open_layer

        return (await open_layer(await UnixfsFile.open(node.get, cid))).toc.digest

    click.echo(settings.within(timeout).run(digest))


def _of_file(path: Path) -> str:
    import trio

    from ipfs_store.formats.layer import open_layer

    async def digest() -> str:
        return (await open_layer(_LocalBlob(file, size))).toc.digest

    with path.open("rb") as file:
        size = file.seek(0, 2)
        return trio.run(digest)


@dataclass(frozen=True, slots=True)
class _LocalBlob:
    file: BinaryIO
    size: int

    async def read(self, offset: int, length: int) -> bytes:
        self.file.seek(offset)
        return self.file.read(length)
