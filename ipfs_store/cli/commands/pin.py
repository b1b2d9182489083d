"""``ipfs-store pin add``, ``pin rm``, ``pin ls``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ipfs_store.cli.command import Group
from ipfs_store.cli.names import complete
from ipfs_store.cli.settings import Settings, timeout_option

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ipfs_store.cids import Cid
    from ipfs_store.nodes.interface import Node


@click.group(
    "pin",
    cls=Group,
    short_help="Keep, or no longer keep, what a CID links to.",
    examples="""
    ipfs-store --peer http://HOST:8421 pin add ROOT    # fetch all of an image and keep it
    ipfs-store pin ls                                  # what is kept, by name
    ipfs-store pin rm ROOT                             # the next gc may delete it
    """,
)
def command() -> None:
    """Pins keep a CID and all that it links to from `ipfs-store gc`. An image's root (shown by ipfs-push) links the whole image."""


@command.command(
    "add",
    short_help="Keep what CIDs link to, fetching what is missing.",
    examples="""
    ipfs-store pin add ROOT                               # an image that was pushed here
    ipfs-store --peer http://HOST:8421 pin add ROOT       # one of another machine, fetched first
    ipfs-store pin add --name docker.io/me/app:1 ROOT     # under a name that pin ls shows
    """,
)
@click.argument("cids", nargs=-1, required=True, metavar="CID|NAME...", shell_complete=complete)
@click.option("--name", default="", help="What pin ls shows beside the CID.")
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each, one a line.")
@click.pass_obj
def add(settings: Settings, cids: tuple[str, ...], name: str, timeout: float | None, as_json: bool) -> None:
    """Keep each CID and all that it links to; of an image's CID, all of the image. Prints each when all of it is here."""

    async def work(node: Node) -> None:
        from ipfs_store.images.catalog import find, keep
        from ipfs_store.images.identity import identify

        for text in cids:
            image = await identify(node, await find(node, text))
            await keep(node, image, name=name)
            _tell(image.cid, image.roots, as_json=as_json)

    settings.within(timeout).run(work)


@command.command(
    "rm",
    short_help="No longer keep CIDs.",
    examples="""
    ipfs-store pin rm ROOT    # nothing is deleted before the next gc
    """,
)
@click.argument("cids", nargs=-1, required=True, metavar="CID|NAME...", shell_complete=complete)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each, one a line.")
@click.pass_obj
def rm(settings: Settings, cids: tuple[str, ...], as_json: bool) -> None:
    """No longer keep each CID (of an image, all that was pinned for it), and print it. What no other pin reaches goes with the next `gc`."""

    async def work(node: Node) -> None:
        from ipfs_store.images.catalog import find, remove

        gone: set[Cid] = set()
        for cid in [await find(node, text) for text in cids]:
            unpinned = () if cid in gone else await remove(node, cid)
            gone.update(unpinned)
            _tell(cid, unpinned, as_json=as_json)

    settings.run(work)


@command.command(
    "ls",
    short_help="List what is kept.",
    examples="""
    ipfs-store pin ls           # CID and name, sorted by name
    ipfs-store pin ls --json    # for programs
    """,
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.pass_obj
def ls(settings: Settings, as_json: bool) -> None:
    """List pinned CIDs and their names."""
    from ipfs_store.cids import format_cid

    async def pins(node: Node) -> dict[Cid, str]:
        return await node.pins()

    found = sorted((name, format_cid(cid)) for cid, name in settings.run(pins).items())
    if as_json:
        import json

        click.echo(json.dumps([{"cid": cid, "name": name} for name, cid in found], indent=2))
        return
    for name, cid in found:
        click.echo(f"{cid}  {name}".rstrip())


def _tell(cid: Cid, pins: Iterable[Cid], *, as_json: bool) -> None:
    from ipfs_store.cids import format_cid

    if as_json:
        import json

        click.echo(json.dumps({"cid": format_cid(cid), "pins": [format_cid(pin) for pin in pins]}))
    else:
        click.echo(format_cid(cid))
