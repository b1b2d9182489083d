"""``ipfs-store ipfs-push``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ipfs_store.cli.command import Command
from ipfs_store.cli.formats import FormatRequest, format_options, parse_credentials
from ipfs_store.cli.settings import Settings, Size

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from ipfs_store.formats.names import Kind
    from ipfs_store.formats.options import WriteOptions
    from ipfs_store.images.model import Convert, Progress
    from ipfs_store.images.push import Inspect, PushResult
    from ipfs_store.nodes.interface import Node


@click.command(
    "ipfs-push",
    cls=Command,
    short_help="Push an image into IPFS and print its CID.",
    examples="""
    ipfs-store ipfs-push debian:12                               # from a registry
    ipfs-store ipfs-push image.tar                               # an OCI or Docker archive, also compressed
    ipfs-store ipfs-push docker-archive:images.tar:debian:12     # one of several in an archive
    ipfs-store ipfs-push oci:layout                              # a folder
    ipfs-store ipfs-push containerd:docker.io/library/debian:12  # what containerd has
    ipfs-store ipfs-push --zstdchunked image.tar                 # layers as zstd:chunked
    ipfs-store ipfs-push --estargz=false --json image.tar        # layers as they are; the result as JSON
    ipfs-store ipfs-push --referrers REGISTRY/signed:1           # every digest kept, signatures and SBOMs taken along
    """,
)
@click.argument("source")
@click.option("--estargz/--no-estargz", default=True, show_default=True, help="Convert layers to eStargz, so that they can be read lazily.")
@click.option("--platform", "platforms", multiple=True, metavar="OS/ARCH", help="Which of several (may be repeated) [this machine's].")
@click.option("--all-platforms", is_flag=True, help="All of several.")
@click.option("--chunker", default="member", show_default=True, metavar="RULE",
              help="Where layers are cut into blocks: member[-BYTES] where their parts end, size-BYTES as ipfs add does.")  # fmt: skip
@click.option("--chunk-size", type=Size(), metavar="SIZE", help="Of converted layers: what is fetched at once [256KiB].")
@click.option("--level", type=click.IntRange(0, 22), metavar="N", help="Of converted layers: compression [eStargz 5, zstd:chunked 3].")
@format_options
@click.option(
    "--preserve-digests", is_flag=True, help="Leave every byte as it is, so that digests and signatures hold; nothing is converted."
)
@click.option("--referrers", is_flag=True, help="Take signatures, SBOMs and the like along (preserves digests).")
@click.option("--name", default="", help="Name of the image [the source's].")
@click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS.")
@click.option("--creds", metavar="USER[:PASSWORD]", envvar="IPFS_STORE_CREDS",
              help="For the registry, instead of those of docker login; in IPFS_STORE_CREDS nobody sees them.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.pass_obj
def command(
    settings: Settings, /, source: str, estargz: bool, platforms: tuple[str, ...], all_platforms: bool, chunk_size: int | None,
    level: int | None, chunker: str, preserve_digests: bool, referrers: bool, name: str, plain_http: bool, creds: str | None, as_json: bool,
    quiet: bool, **formats: Any,
) -> None:  # fmt: skip
    """Push the image SOURCE into IPFS, keep it there (pin it), and print its CID.

    SOURCE is an archive, the folder of an OCI layout, or a name as docker pull takes it. What a path holds is found out; oci:, oci-archive:,
    docker-archive:, docker:// and containerd: before it say so. The same image and options give the same CID.
    """
    if platforms and all_platforms:
        raise click.UsageError("--platform and --all-platforms exclude each other")
    preserve_digests = preserve_digests or referrers
    said = click.get_current_context().get_parameter_source("estargz") is ParameterSource.COMMANDLINE
    if preserve_digests and ((estargz and said) or formats["zstdchunked"]):
        raise click.UsageError("--estargz and --zstdchunked change digests, --preserve-digests and --referrers keep them")
    estargz = estargz and (said or not formats["zstdchunked"])
    request = FormatRequest(estargz=estargz, **formats).everywhere(chunk_size, level)
    written = request.options()

    from ipfs_store.cli.progress import shown_progress
    from ipfs_store.dag.chunker import Chunker
    from ipfs_store.formats.names import LAZY
    from ipfs_store.images.memory import LayerMemory, default_folder
    from ipfs_store.images.push import PushOptions, push_image
    from ipfs_store.images.sources import SourceOptions, open_image
    from ipfs_store.oci import Reference
    from ipfs_store.oci.platform import parse_platform

    wanted = None if all_platforms else tuple(map(parse_platform, platforms))
    full_name = str(Reference.parse(name)) if name else ""
    credentials = parse_credentials(creds)

    with shown_progress(quiet=quiet) as progress:
        opening = SourceOptions(credentials=credentials, plain_http=plain_http, progress=progress)
        # Any lazily readable layer is right for us as it is, unless a format was asked for.
        reuse = (LAZY if estargz else None) if request.reuses else ()
        convert = _when_needed(lambda: _converter(written, reuse, opening.folder, progress)) if written is not None else None
        rule = Chunker.parse(chunker)
        recipe = repr((written, None if reuse is None else sorted(reuse), str(rule), preserve_digests))
        options = PushOptions(
            platforms=wanted,
            convert=convert,
            inspect=_when_needed(_lazy_form),
            chunker=rule,
            memory=LayerMemory(default_folder(), recipe),
            name=full_name,
            preserve_digests=preserve_digests,
            referrers=referrers,
        )

        async def push(node: Node) -> tuple[PushResult, str]:
            async with open_image(source, options=opening) as image:
                return await push_image(node, image, options, progress), full_name or image.name

        result, pushed_name = settings.run(push)
    if preserve_digests and not quiet:
        _tell_not_lazy(result)
    _print(result, pushed_name, as_json=as_json, quiet=quiet)


def _when_needed(make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """What ``make`` gives, made when it is called: converting takes 0.1 s to import, which a push of layers that are known does without."""
    made = cache(make)
    return lambda *arguments: made()(*arguments)


def _converter(options: WriteOptions, reuse: Collection[Kind] | None, folder: Path | None, progress: Progress) -> Convert:
    from ipfs_store.images.conversion import layer_converter

    return layer_converter(options, reuse=reuse, folder=folder, progress=progress)


def _lazy_form() -> Inspect:
    from ipfs_store.images.conversion import lazy_form

    return lazy_form


def _tell_not_lazy(result: PushResult) -> None:
    plain = sum(layer.toc is None for layer in result.layers)
    if plain:
        what = f"{plain} of {len(result.layers)} layers have no table of contents, so they will be fetched whole"
        click.echo(f"note: {what}; to keep their digests, they were not converted", err=True)


def _print(result: PushResult, name: str, *, as_json: bool, quiet: bool) -> None:
    from ipfs_store.cids import format_cid

    cid = format_cid(result.cid)
    if as_json:
        import json

        value = {
            "cid": cid,
            "root": format_cid(result.root),
            "descriptor": result.descriptor.to_json(),
            "name": name,
            "bytes": result.bytes,
            "new_blocks": result.new_blocks,
            "new_bytes": result.new_bytes,
            "seconds": {phase: round(seconds, 3) for phase, seconds in result.seconds.items()},
            "layers": [
                {
                    "digest": str(layer.descriptor.digest),
                    "cid": format_cid(layer.cid),
                    "size": layer.descriptor.size,
                    "converted": layer.converted,
                    "lazy": layer.toc is not None,
                }
                for layer in result.layers
            ],
            "referrers": [
                {"digest": str(item.blob.digest), "subject": str(item.subject), "artifactType": item.artifact_type}
                for item in result.referrers
            ],
        }
        click.echo(json.dumps(value, indent=2))
        return
    if not quiet:
        from ipfs_store.cli.sizes import size

        blocks = f"{size(result.new_bytes)} new in {result.new_blocks} blocks"
        more = f", {len(result.referrers)} referrers" if result.referrers else ""
        click.echo(f"pushed {name or 'the image'}{more}: {size(result.bytes)}, {blocks}, root {format_cid(result.root)}", err=True)
    click.echo(cid)
