"""``ipfs-store rpull`` and ``ipfs-store run``: what is loaded to show their help. The work is in ``rpull`` and ``run``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ipfs_store.cli.command import Command
from ipfs_store.cli.settings import Duration, Settings

if TYPE_CHECKING:
    from snapshotter.containerd.rpull import PulledLayer

_address = click.option(
    "-a", "--address", metavar="SOCKET", help="containerd's socket [$CONTAINERD_ADDRESS, /run/containerd/containerd.sock]."
)
_namespace = click.option("-n", "--namespace", metavar="NAME", help="containerd's namespace [$CONTAINERD_NAMESPACE, default].")
_snapshotter = click.option(
    "--snapshotter", default="ipfs", show_default=True, metavar="NAME",
    help="containerd's snapshotter; overlayfs for an eager pull.",
)  # fmt: skip
_timeout = click.option("--timeout", type=Duration(), help="When a block counts as found nowhere (30, 90s, 2m).")


@click.command(
    cls=Command,
    short_help="Bring an image from IPFS into containerd, its layers lazily.",
    examples="""
    ipfs-store rpull bafkrei...                           # then: ctr run --rm -t --snapshotter ipfs NAME ID
    ipfs-store rpull --name debian ipfs://bafkrei...      # under a name of your own
    ipfs-store rpull --snapshotter overlayfs bafkrei...   # fetch and unpack everything now
    ipfs-store rpull --referrers bafkrei...               # with the signatures and SBOMs that were pushed with it
    """,
)
@click.argument("cid")
@click.option("--name", default="", help="Name of the image in containerd [the one it was pushed under, or the CID].")
@_address
@_namespace
@_snapshotter
@click.option("--platform", "platforms", multiple=True, metavar="OS/ARCH", help="Which of several (may be repeated) [this machine's].")
@click.option("--all-platforms", is_flag=True, help="All of several.")
@click.option("--referrers", is_flag=True, help="Signatures, SBOMs and the like as well, into the content store.")
@_timeout
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print the image's name only.")
@click.pass_obj
def rpull(
    settings: Settings, cid: str, name: str, address: str | None, namespace: str | None, snapshotter: str, platforms: tuple[str, ...],
    all_platforms: bool, referrers: bool, timeout: float | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Bring the image CID (or ipfs://CID) into containerd.

    Manifest and config go into its content store, and the snapshotter mounts the layers: files are fetched when they are read. A layer that
    cannot be mounted so is fetched and unpacked. The last line printed is the image's name.
    """
    import json
    import time

    from ipfs_store.cids import format_cid, parse_cid
    from ipfs_store.oci.platform import parse_platform

    image_cid = parse_cid(cid)
    wanted = None if all_platforms else tuple(map(parse_platform, platforms))

    from snapshotter.containerd.connection import connect
    from snapshotter.containerd.rpull import rpull as pull

    start = time.monotonic()
    with connect(address, namespace) as connection:
        pulled = settings.run(
            lambda node: pull(
                node, connection, image_cid, name=name, snapshotter=snapshotter, platforms=wanted, referrers=referrers,
                timeout=timeout or settings.timeout, report=(lambda _: None) if quiet or as_json else _print_layer,
            )
        )  # fmt: skip
        if as_json:
            value = {
                "name": pulled.name,
                "cid": format_cid(pulled.cid),
                "digest": str(pulled.digest),
                "namespace": connection.namespace,
                "snapshotter": snapshotter,
                "seconds": round(time.monotonic() - start, 3),
                "layers": [
                    {"digest": str(layer.digest), "chain_id": str(layer.chain_id), "size": layer.size, "how": layer.how, "why": layer.why}
                    for layer in pulled.layers
                ],
                "referrers": [str(digest) for digest in pulled.referrers],
            }
            click.echo(json.dumps(value, indent=2))
        else:
            click.echo(pulled.name)


def _print_layer(layer: PulledLayer) -> None:
    said = {"lazy": "mounted lazily", "pulled": "pulled", "present": "there already"}[layer.how]
    click.echo(f"layer {layer.digest} ({layer.size} bytes): {said}" + (f": {layer.why}" if layer.why else ""), err=True)


@click.command(
    cls=Command,
    short_help="Run a container from an image of containerd or from a CID.",
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
    examples="""
    ipfs-store run --rm bafkrei...                        # pull it lazily if it is not there, and run what it says
    ipfs-store run --rm -t docker.io/library/debian:12 bash
    ipfs-store run --rm --net-host --env A=1 --mount /srv:/data:ro NAME cat /data/file
    """,
)
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--rm", "remove", is_flag=True, help="Remove the container when it has ended.")
@click.option("-t", "--tty", is_flag=True, help="Give it our terminal (and our input).")
@click.option("-i", "--interactive", is_flag=True, help="Give it our input.")
@click.option("--net-host", is_flag=True, help="Use the machine's network; without, it has none.")
@click.option("-e", "--env", "environment", multiple=True, metavar="KEY=VALUE", help="Environment variable (may be repeated).")
@click.option(
    "--mount", "mounts", multiple=True, metavar="MOUNT", help="type=bind,src=A,dst=B,options=rbind:ro or A:B[:ro] (may be repeated)."
)
@click.option("-w", "--cwd", default="", metavar="FOLDER", help="Working directory [the image's].")
@click.option("--read-only", is_flag=True, help="Make the root read-only.")
@click.option("--name", default="", metavar="ID", help="Name of the container [made up].")
@_address
@_namespace
@_snapshotter
@click.option("--platform", metavar="OS/ARCH", help="Which of several platforms [this machine's].")
@_timeout
@click.pass_obj
def run(
    settings: Settings, image: str, command: tuple[str, ...], remove: bool, tty: bool, interactive: bool, net_host: bool,
    environment: tuple[str, ...], mounts: tuple[str, ...], cwd: str, read_only: bool, name: str, address: str | None, namespace: str | None,
    snapshotter: str, platform: str | None, timeout: float | None,
) -> int:  # fmt: skip
    """Run COMMAND, or what the image says, in a container from IMAGE: a name that containerd has, or a CID.

    An image of a CID is pulled as rpull does if it is not there. The exit status is that of the command; signals are passed on.
    """
    import os
    import secrets

    from ipfs_store.oci.platform import parse_platform
    from snapshotter.containerd.connection import connect
    from snapshotter.containerd.run import run as run_container
    from snapshotter.containerd.run_image import find_image
    from snapshotter.containerd.spec import BindMount, Options

    if tty and not os.isatty(0):
        raise click.UsageError("--tty: our input is no terminal")
    for entry in environment:
        if not entry.partition("=")[1] or entry.startswith("="):
            raise click.BadParameter(f"{entry[:100]!r} is not KEY=VALUE", param_hint="--env")
    options = Options(
        command=command, environment=environment, working_directory=cwd, terminal=tty, host_network=net_host, read_only=read_only,
        mounts=tuple(map(BindMount.parse, mounts)),
    )  # fmt: skip
    wanted = parse_platform(platform) if platform else None
    with connect(address, namespace) as connection:
        found = find_image(
            settings, connection, image, snapshotter=snapshotter, platform=wanted, timeout=timeout or settings.timeout, report=_print_layer
        )
        return run_container(
            connection, found, name or f"run-{secrets.token_hex(6)}", snapshotter=snapshotter, options=options, interactive=interactive,
            remove=remove,
        )  # fmt: skip
