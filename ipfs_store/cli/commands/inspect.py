"""``ipfs-store inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ipfs_store.cli.command import Command
from ipfs_store.cli.names import complete
from ipfs_store.cli.settings import Settings, timeout_option

if TYPE_CHECKING:
    from ipfs_store.images.inspection import InspectedLayer, Inspection, Part
    from ipfs_store.nodes.interface import Node


@click.command(
    "inspect",
    cls=Command,
    short_help="Show what an image is made of and what a pull would fetch.",
    examples="""
    ipfs-store inspect debian:12                        # an image that is here, by its name
    ipfs-store --peer http://HOST:8421 inspect CID      # of another machine: how much of it is here already
    ipfs-store inspect --json CID                       # for programs
    """,
)
@click.argument("image", metavar="CID|NAME", shell_complete=complete)
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(settings: Settings, image: str, timeout: float | None, as_json: bool) -> None:
    """Show the tree of an image: manifests, layers and their formats, what refers to it; what of it is here; what a pull would fetch.

    Documents and inner blocks are fetched, layers are not.
    """

    async def work(node: Node) -> Inspection:
        from ipfs_store.images.catalog import find
        from ipfs_store.images.inspection import inspect

        return await inspect(node, await find(node, image))

    found = settings.within(timeout).run(work)
    if as_json:
        import json

        click.echo(json.dumps(_value(found), indent=2))
    else:
        _tree(found)


def _tree(found: Inspection) -> None:
    from ipfs_store.cids import format_cid
    from ipfs_store.cli.sizes import size

    click.echo(found.name or "an image without a name")
    click.echo(f"  cid     {format_cid(found.cid)}")
    if found.root is not None:
        click.echo(f"  root    {format_cid(found.root)}")
    click.echo(f"  digest  {found.descriptor.digest}  {found.descriptor.media_type}")
    for manifest in found.manifests:
        click.echo(f"  {str(manifest.platform) or 'any platform'}: manifest {manifest.descriptor.digest}  {format_cid(manifest.cid)}")
        click.echo(f"    config {manifest.config.digest}  {format_cid(manifest.config_cid)}")
        for number, layer in enumerate(manifest.layers):
            click.echo(f"    layer {number} {layer.descriptor.digest}  {format_cid(layer.cid)}")
            click.echo(f"      {_about(layer)}")
    for referrer in found.referrers:
        click.echo(f"  referrer {referrer.digest}  {referrer.artifact_type}  of {referrer.subject}")
    whole = found.whole
    click.echo(f"  size    {size(whole.bytes)} in {whole.blocks} blocks, {size(found.shared)} of it shared with other images here")
    click.echo(f"  here    {size(whole.here_bytes)} in {whole.here_blocks} blocks")
    click.echo(f"  a lazy pull fetches {size(found.lazy.missing)} at once, {size(whole.missing)} in the end")


def _about(layer: InspectedLayer) -> str:
    from ipfs_store.cli.sizes import size

    part = layer.part
    here = "all of it here" if part.here_blocks == part.blocks else f"{size(part.here_bytes)} here"
    lazy = "" if layer.lazy else ", to be fetched whole"
    return f"{layer.format}{lazy}, {size(part.bytes)} in {part.blocks} blocks, {size(layer.shared)} shared, {here}"


def _value(found: Inspection) -> dict[str, Any]:
    from ipfs_store.cids import format_cid

    return {
        "cid": format_cid(found.cid),
        "root": None if found.root is None else format_cid(found.root),
        "name": found.name,
        "digest": str(found.descriptor.digest),
        "mediaType": found.descriptor.media_type,
        "manifests": [
            {
                "digest": str(manifest.descriptor.digest),
                "cid": format_cid(manifest.cid),
                "platform": str(manifest.platform),
                "config": {"digest": str(manifest.config.digest), "cid": format_cid(manifest.config_cid)},
                "layers": [
                    {
                        "digest": str(layer.descriptor.digest),
                        "cid": format_cid(layer.cid),
                        "diffId": str(layer.diff_id),
                        "mediaType": layer.descriptor.media_type,
                        "size": layer.descriptor.size,
                        "format": layer.format,
                        "lazy": layer.lazy,
                        "toc": None if layer.toc is None else format_cid(layer.toc),
                        **_part(layer.part),
                        "shared": layer.shared,
                    }
                    for layer in manifest.layers
                ],
            }
            for manifest in found.manifests
        ],
        "referrers": [
            {
                "digest": str(referrer.digest),
                "subject": str(referrer.subject),
                "artifactType": referrer.artifact_type,
                "blobs": [{"digest": str(blob.digest), "mediaType": blob.media_type, "cid": format_cid(cid)} for blob, cid in referrer.blobs.items()],
            }
            for referrer in found.referrers
        ],
        **_part(found.whole),
        "shared": found.shared,
        "pull": {"lazy": found.lazy.missing, "whole": found.whole.missing},
    }  # fmt: skip


def _part(part: Part) -> dict[str, int]:
    return {"blocks": part.blocks, "bytes": part.bytes, "here_blocks": part.here_blocks, "here_bytes": part.here_bytes}
