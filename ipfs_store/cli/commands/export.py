"""``ipfs-store export``."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import click

from ipfs_store.cli.command import Command
from ipfs_store.cli.names import complete
from ipfs_store.cli.settings import Settings, timeout_option

if TYPE_CHECKING:
    from ipfs_store.cids import Cid
    from ipfs_store.images.carfile import Exported
    from ipfs_store.images.model import Progress
    from ipfs_store.nodes.interface import Node


@click.command(
    "export",
    cls=Command,
    short_help="Write an image into a CAR file, for another machine to import.",
    examples="""
    ipfs-store export -o image.car CID                     # all of an image
    ipfs-store export -o update.car --have OLD NEW         # only what a machine lacks that has the image OLD
    ipfs-store export CID | ssh HOST ipfs-store import -   # through a pipe
    ipfs-store export -o image.car debian:12               # by the name that `ipfs-store images` shows
    """,
)
@click.argument("images", nargs=-1, required=True, metavar="CID|NAME...", shell_complete=complete)
@click.option("-o", "--output", type=click.Path(dir_okay=False), default="-", metavar="FILE", help="Where to [standard output].")
@click.option("--have", multiple=True, metavar="CID|NAME", help="An image that the other machine has (may be repeated).")
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON (with -o FILE).")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.pass_obj
def command(
    settings: Settings, images: tuple[str, ...], output: str, have: tuple[str, ...], timeout: float | None, as_json: bool, quiet: bool
) -> None:
    """Write images, or other DAGs, with all that belongs to them into one file (CARv1), which `ipfs-store import` and `ipfs dag import` take.

    What this node lacks is fetched. The file appears when it is whole.
    """
    import sys

    from ipfs_store.cli.output import whole_file
    from ipfs_store.cli.progress import shown_progress
    from ipfs_store.cli.sizes import size

    settings = settings.within(timeout)
    if output == "-":
        if sys.stdout.isatty():
            raise click.UsageError("a CAR is no text for a terminal: name a file with -o, or pipe it somewhere")
        if as_json:
            raise click.UsageError("--json needs -o FILE, since the CAR is on standard output")
        with shown_progress(quiet=quiet) as progress:
            written = settings.run(lambda node: _export(node, images, have, sys.stdout.buffer, progress))
        sys.stdout.buffer.flush()
    else:
        with whole_file(output) as file, shown_progress(quiet=quiet) as progress:
            written = settings.run(lambda node: _export(node, images, have, file, progress))
    if as_json:
        import json

        click.echo(json.dumps({"file": output, "blocks": written.blocks, "bytes": written.bytes, "left_out": written.left_out}))
    elif not quiet:
        less = f"; {written.left_out} blocks left out" if have else ""
        click.echo(f"wrote {size(written.bytes)} in {written.blocks} blocks{less}", err=True)


async def _export(node: Node, images: tuple[str, ...], have: tuple[str, ...], target: BinaryIO, progress: Progress) -> Exported:
    import trio

    from ipfs_store.images.carfile import export_car
    from ipfs_store.images.catalog import find
    from ipfs_store.images.identity import identify

    async def roots(texts: tuple[str, ...]) -> list[Cid]:
        return [root for text in texts for root in (await identify(node, await find(node, text))).roots]

    async def write(piece: bytes) -> None:
        await trio.to_thread.run_sync(target.write, piece)

    return await export_car(node, await roots(images), write, have=await roots(have), progress=progress)
