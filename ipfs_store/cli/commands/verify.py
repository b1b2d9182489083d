"""``ipfs-store verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ipfs_store.cli.command import Command
from ipfs_store.cli.names import complete
from ipfs_store.cli.settings import Settings, timeout_option

if TYPE_CHECKING:
    from ipfs_store.images.verification import Verified
    from ipfs_store.nodes.interface import Node


@click.command(
    "verify",
    cls=Command,
    short_help="Read all of an image and check it.",
    examples="""
    ipfs-store verify debian:12                        # status 1, and a line for each problem, if something is wrong
    ipfs-store --peer http://HOST:8421 verify CID      # blocks that are lost or damaged here are fetched again
    ipfs-store verify --json CID                       # for programs
    """,
)
@click.argument("image", metavar="CID|NAME", shell_complete=complete)
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.pass_obj
def command(settings: Settings, image: str, timeout: float | None, as_json: bool, quiet: bool) -> int:
    """Check every block against its CID, documents and layers against their digests, tables of contents and every chunk against each other.

    A damaged block of the embedded node is removed, and fetched again where a peer has it.
    """
    from ipfs_store.cli.progress import shown_progress

    with shown_progress(quiet=quiet) as progress:

        async def work(node: Node) -> Verified:
            from ipfs_store.images.catalog import find
            from ipfs_store.images.verification import verify

            return await verify(node, await find(node, image), progress=progress)

        found = settings.within(timeout).run(work)
    if as_json:
        import dataclasses
        import json

        click.echo(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        from ipfs_store.cli.sizes import size

        for problem in found.problems:
            click.echo(f"{problem.what}: {problem.message}")
        looked = f"{found.blocks} blocks ({size(found.bytes)}), {found.documents} documents, {found.layers} layers"
        verdict = f"{len(found.problems)} problems" if found.problems else "all is as it should be"
        click.echo(f"{verdict}: {looked}, {found.files} files, {found.chunks} chunks", err=bool(found.problems))
    return 1 if found.problems else 0
