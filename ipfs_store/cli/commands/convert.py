"""``ipfs-store convert``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from ipfs_store.cli.command import Command
from ipfs_store.cli.formats import FormatRequest, format_options, parse_credentials
from ipfs_store.cli.settings import Settings, run_async

if TYPE_CHECKING:
    from ipfs_store.images.conversion import ConvertedImage


@click.command(
    "convert",
    cls=Command,
    short_help="Convert an image, from anywhere to anywhere.",
    examples="""
    ipfs-store convert --estargz --oci debian:12 registry.example/debian:12-esgz    # from a registry into another
    ipfs-store convert --zstdchunked image.tar new.tar                              # archives
    ipfs-store convert --estargz containerd:app:1 containerd:app:1-esgz             # what containerd has
    ipfs-store convert --uncompress --all-platforms app:1 oci:layout:1              # a folder, every platform
    ipfs-store convert ipfs://CID docker-archive:app.tar                            # out of IPFS, for docker load
    """,
)
@click.argument("source")
@click.argument("target")
@click.option("--estargz", is_flag=True, help="Convert layers to eStargz.")
@format_options
@click.option("--estargz-external-toc", is_flag=True, help="Tables of contents in an image of their own, tagged TAG-esgztoc.")
@click.option("--estargz-keep-diff-id", is_flag=True, help="Keep every DiffID; with --estargz-external-toc only.")
@click.option("--uncompress", is_flag=True, help="Convert layers to plain tar.")
@click.option("--oci", is_flag=True, help="Convert Docker's media types to OCI's.")
@click.option("--platform", "platforms", multiple=True, metavar="OS/ARCH", help="Which of several (may be repeated) [this machine's].")
@click.option("--all-platforms", is_flag=True, help="All of several.")
@click.option("--plain-http", is_flag=True, help="Talk to registries without TLS.")
@click.option("--creds", metavar="USER[:PASSWORD]", envvar="IPFS_STORE_CREDS",
              help="For registries, instead of those of docker login; in IPFS_STORE_CREDS nobody sees them.")  # fmt: skip
@click.option("--source-creds", metavar="USER[:PASSWORD]", envvar="IPFS_STORE_SOURCE_CREDS", help="For the source's registry only.")
@click.option("--target-creds", metavar="USER[:PASSWORD]", envvar="IPFS_STORE_TARGET_CREDS", help="For the target's registry only.")
@click.option("-a", "--address", metavar="SOCKET", help="containerd's socket [$CONTAINERD_ADDRESS, /run/containerd/containerd.sock].")
@click.option("-n", "--namespace", metavar="NAME", help="containerd's namespace [$CONTAINERD_NAMESPACE, default].")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.pass_obj
def command(
    settings: Settings, /, source: str, target: str, oci: bool, platforms: tuple[str, ...], all_platforms: bool, plain_http: bool,
    creds: str | None, source_creds: str | None, target_creds: str | None, address: str | None, namespace: str | None, as_json: bool,
    quiet: bool, **formats: Any,
) -> None:  # fmt: skip
    """Convert the image SOURCE and write it to TARGET, whole or not at all; prints the digest of what is there then.

    Both are an archive (oci-archive:FILE, docker-archive:FILE), the folder of an OCI layout (oci:FOLDER), a name of a registry (docker://NAME)
    or of containerd (containerd:NAME); a name in an archive or layout comes behind a colon. SOURCE may be a CID (ipfs://CID) too. Without a
    prefix, a path ending in .tar is an OCI archive, a folder a layout, anything else a registry's name; what a path of SOURCE holds is found out.

    A layer that has the format already stays byte for byte what it is, unless options say how it shall be. Without a format, all do.
    """
    from ipfs_store.cli.progress import shown_progress
    from ipfs_store.formats.names import Kind
    from ipfs_store.images.conversion import ConvertOptions, convert_image, layer_converter
    from ipfs_store.images.sources import SourceOptions, open_image
    from ipfs_store.images.targets import TargetOptions, open_target
    from ipfs_store.oci.platform import parse_platform

    if platforms and all_platforms:
        raise click.UsageError("--platform and --all-platforms exclude each other")
    request = FormatRequest(**formats)
    written = request.options()
    wanted = None if all_platforms else tuple(parse_platform(part) for text in platforms for part in text.split(","))
    both = parse_credentials(creds)
    theirs = parse_credentials(source_creds, "--source-creds") or both
    ours = parse_credentials(target_creds, "--target-creds") or both
    reuse: set[Kind] | None = None if request.reuses else set()
    start = time.monotonic()

    with shown_progress(quiet=quiet) as progress:

        async def convert() -> ConvertedImage:
            where = SourceOptions(
                credentials=theirs, plain_http=plain_http, address=address, namespace=namespace, node=settings.open, progress=progress
            )
            async with open_image(source, options=where) as image:
                there = TargetOptions(
                    credentials=ours, plain_http=plain_http, mount_from=getattr(image, "reference", None), name=image.name,
                    address=address, namespace=namespace, folder=where.folder, progress=progress,
                )  # fmt: skip
                async with open_target(target, there) as place:
                    layers = None
                    if written is not None:
                        layers = layer_converter(written, reuse=reuse, folder=place.folder, progress=progress)
                    return await convert_image(image, place, ConvertOptions(platforms=wanted, convert=layers, oci=oci), progress)

        converted = run_async(convert)
    _print(converted, source, target, time.monotonic() - start, as_json=as_json, quiet=quiet)


def _print(converted: ConvertedImage, source: str, target: str, seconds: float, *, as_json: bool, quiet: bool) -> None:
    before = sum(layer.source.size for layer in converted.layers)
    after = sum(layer.descriptor.size for layer in converted.layers)
    if as_json:
        import json

        value = {
            "source": source,
            "target": target,
            "names": list(converted.names),
            "digest": str(converted.root.digest),
            "media_type": converted.root.media_type,
            "source_bytes": before,
            "bytes": after,
            "seconds": round(seconds, 3),
            "layers": [
                {
                    "source": str(layer.source.digest),
                    "digest": str(layer.descriptor.digest),
                    "media_type": layer.descriptor.media_type,
                    "size": layer.descriptor.size,
                    "converted": layer.converted,
                    "annotations": dict(layer.descriptor.annotations),
                    "toc": str(layer.toc.digest) if layer.toc is not None else None,
                }
                for layer in converted.layers
            ],
        }
        click.echo(json.dumps(value, indent=2))
        return
    if not quiet:
        from ipfs_store.cli.sizes import size

        made = sum(layer.converted for layer in converted.layers)
        click.echo(
            f"wrote {converted.names[-1] or target}: {made} of {len(converted.layers)} layers converted, {size(before)} to {size(after)},"
            f" {seconds:.1f} s",
            err=True,
        )
    for name in converted.names[:-1]:
        click.echo(f"extra image: {name}")
    click.echo(str(converted.root.digest))
