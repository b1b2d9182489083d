"""``ipfs-store get-toc-digest``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from ipfs_store.cli.command import Command
from ipfs_store.cli.settings import Settings, run_async, timeout_option

if TYPE_CHECKING:
    from ipfs_store.formats.blob import RangeReader
    from ipfs_store.images.sources import SourceOptions
    from ipfs_store.images.tocs import LayerToc
    from ipfs_store.oci import Platform

_BLOBS = "ipfs_store.blobs"


@click.command(
    "get-toc-digest",
    cls=Command,
    short_help="Print the TOC digests of lazily readable layers.",
    examples="""
    ipfs-store get-toc-digest layer.tar.gz                 # a file
    ipfs-store get-toc-digest CID                          # a layer in IPFS, or an image; only tables are fetched
    ipfs-store get-toc-digest registry.example/app:1       # every layer of an image, lowest first
    ipfs-store get-toc-digest sha256:...                   # a layer that containerd has
    ipfs-store get-toc-digest --dump-toc layer.tar.gz      # the table itself
    """,
)
@click.argument("layer", metavar="LAYER|IMAGE")
@click.option("--dump-toc", is_flag=True, help="Print the table of contents, as it stands in the layer, instead of its digest.")
@click.option("--zstdchunked", is_flag=True, help="Taken for `ctr-remote`'s sake: what a layer is, is found out.", expose_value=False)
@click.option("--platform", metavar="OS/ARCH", help="Of an image: which of several [this machine's].")
@click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS.")
@click.option("--creds", metavar="USER[:PASSWORD]", envvar="IPFS_STORE_CREDS", help="For the registry, instead of those of docker login.")
@click.option("-a", "--address", metavar="SOCKET", help="containerd's socket [$CONTAINERD_ADDRESS, /run/containerd/containerd.sock].")
@click.option("-n", "--namespace", metavar="NAME", help="containerd's namespace [$CONTAINERD_NAMESPACE, default].")
@timeout_option
@click.pass_obj
def command(
    settings: Settings, layer: str, dump_toc: bool, platform: str | None, plain_http: bool, creds: str | None, address: str | None,
    namespace: str | None, timeout: float | None,
) -> None:  # fmt: skip
    """Print the digest of the table of contents of a lazily readable layer, which a descriptor names in its annotations.

    LAYER is a file, a CID, or a digest (sha256:...) that containerd has; IMAGE what `ipfs-store convert` takes: then there is a line for each
    layer, the lowest first, and "-" for one that has no table. The tables are read, wherever they are, and have to be sound.
    """
    from ipfs_store.cli.formats import parse_credentials
    from ipfs_store.images.sources import SourceOptions
    from ipfs_store.oci.platform import parse_platform

    settings = settings.within(timeout)
    options = SourceOptions(
        credentials=parse_credentials(creds), plain_http=plain_http, address=address, namespace=namespace, node=settings.open
    )
    wanted = parse_platform(platform) if platform else None
    for found in run_async(lambda: _tocs(settings, layer, options, wanted)):
        click.echo(found.data.decode("utf-8", "replace") if dump_toc else found.digest or "-")


async def _tocs(settings: Settings, text: str, options: SourceOptions, platform: Platform | None) -> list[LayerToc]:
    from ipfs_store.cids import parse_cid
    from ipfs_store.dag.file import UnixfsFile
    from ipfs_store.errors import InvalidInput, NotSeekable
    from ipfs_store.images.sources.detect import looks_like_a_cid
    from ipfs_store.images.sources.ranges import FileBlob
    from ipfs_store.images.tocs import blob_toc, image_tocs, is_image

    if Path(text).is_file():  # noqa: ASYNC240 before anything else runs
        try:
            return [await blob_toc(await FileBlob.open(Path(text)))]
        except NotSeekable as error:
            try:
                return await image_tocs(text, options, platform)
            except InvalidInput:
                raise error from None  # no image either
    if text.startswith("sha256:"):
        async with _containerd_blob(text, options) as blob:
            return [await blob_toc(blob)]
    if looks_like_a_cid(text):
        cid = parse_cid(text)
        async with settings.open() as node:
            if not await is_image(node, cid):
                return [await blob_toc(await UnixfsFile.open(node.get, cid))]
    return await image_tocs(text, options, platform)


def _containerd_blob(digest: str, options: SourceOptions) -> AbstractAsyncContextManager[RangeReader]:
    from ipfs_store.errors import InvalidInput
    from ipfs_store.extensions import entry_points, load

    target = entry_points(_BLOBS).get("containerd")
    try:
        if target is None:
            raise ImportError(f"no entry point of {_BLOBS}")
        opener = cast("Callable[[str, SourceOptions], AbstractAsyncContextManager[RangeReader]]", load(target))
    except (ImportError, AttributeError) as error:
        raise InvalidInput(f"containerd: cannot be asked: {error}", hint="pip install 'ipfs-store[snapshotter]'") from error
    return opener(digest, options)
