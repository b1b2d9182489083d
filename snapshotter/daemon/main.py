"""The command line of the daemon."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import click

from ipfs_store import __version__
from ipfs_store.errors import IpfsStoreError

_EPILOG = """\b
Examples:
  ipfs-snapshotter                               run in the foreground, with /etc/ipfs-snapshotter/config.toml
  ipfs-snapshotter --config F                    with another configuration
  ipfs-snapshotter config > F                    write a configuration to begin with
  ipfs-snapshotter status                        what is mounted, and what was fetched
  ipfs-snapshotter pin IMAGE                     keep an image whole in the cache
  ipfs-snapshotter stop                          end the daemon; containers keep their files
  ipfs-snapshotter stop --unmount                end everything, unless containers use it
"""


@click.group(
    invoke_without_command=True, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, message="ipfs-snapshotter %(version)s")
@click.option("--config", "config_path", type=click.Path(dir_okay=False, path_type=Path), envvar="IPFS_SNAPSHOTTER_CONFIG",
              help="Configuration (default: /etc/ipfs-snapshotter/config.toml, if it is there).")  # fmt: skip
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Instead of the configuration's.")
@click.pass_context
def cli(context: click.Context, config_path: Path | None, log_level: str | None) -> None:
    """Serve container images out of IPFS to containerd: a snapshotter that mounts layers without pulling them."""
    context.obj = config_path
    if context.invoked_subcommand is not None:
        return
    import msgspec

    from snapshotter.daemon.config import load_config
    from snapshotter.daemon.process import run_daemon

    config = load_config(config_path)
    if log_level is not None:
        config = msgspec.structs.replace(config, log_level=log_level)
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    run_daemon(config)


@cli.command()
@click.option("--unmount", is_flag=True, help="End the data plane and its mount as well.")
@click.option("--force", is_flag=True, help="Even where containers use the layers.")
@click.pass_obj
def stop(config_path: Path | None, unmount: bool, force: bool) -> None:
    """End the daemon. Layers stay mounted for running containers, unless --unmount is given."""
    from snapshotter.daemon.config import load_config
    from snapshotter.daemon.process import stop_all

    stop_all(load_config(config_path), unmount=unmount, force=force)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@click.pass_obj
def status(config_path: Path | None, as_json: bool) -> None:
    """Show the daemon, the data plane and the mounted layers."""
    from snapshotter.daemon.config import load_config
    from snapshotter.daemon.status import status as look

    found = look(load_config(config_path))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    plane = found["dataplane"]
    click.echo(
        f"daemon      {'process ' + str(found['pid']) if found['pid'] else 'not running'}, {found['snapshots']} snapshots in {found['root']}"
    )
    click.echo(f"socket      {found['socket']}")
    click.echo(f"data plane  {'process ' + str(plane['pid']) + ', ' + plane['mountpoint'] if plane else 'not running'}")
    if plane:
        click.echo(f"cache       {plane['cache_bytes']:,} bytes; fs-verity: {plane['verity']}")
    holder = found["holder"]
    click.echo(
        f"holder      {'process ' + str(holder['pid']) + ', ' + str(holder['served']) + ' data planes so far' if holder else 'not running'}"
    )
    for image in found["images"]:
        click.echo(f"image       {image['image'] or image['snapshot']}: {_amounts(image)}")
    for container in found["containers"]:
        name = f"{container['namespace']}/{container['container']}".lstrip("/")
        click.echo(
            f"{'view' if container['kind'] == 'view' else 'container':<11} {name} of {container['image'] or '?'}, mounted {container['mount']}: {_amounts(container)}"
        )
    for layer in found["layers"]:
        click.echo(
            f"layer {layer['layer']:<5} {layer['digest'] or layer['cid']} {layer['mode']}  {layer['entries']} entries, {layer['bytes']:,} bytes; "
            f"cached {layer['bytes_cached']:,}, fetched {layer['bytes_fetched']:,}, read {layer['bytes_read']:,}, files {layer['files_touched']}"
        )
    for wait in found["reads"]:
        click.echo(
            f"read        waits {wait['seconds']:.1f} s for ipfs://{wait['cid']} at {wait['offset']} ({wait['readers']} readers, {wait['attempts']} attempts): "
            f"{wait['reason'] or 'under way'}"
        )


def _amounts(of: dict[str, Any]) -> str:
    modes = "+".join(of["modes"]) or "not mounted"
    return (
        f"{of['layers']} layers ({of['layers_lazy']} lazy, {modes}), {of['bytes']:,} bytes, cached {of['bytes_cached']:,}, "
        f"fetched {of['bytes_fetched']:,}, {of['reads_waiting']} reads wait{_pinned(of)}"
    )


def _pinned(of: dict[str, Any]) -> str:
    if not of["pinned"]:
        return ""
    return (
        f", pinned, {of['pin_left']:,} bytes to come" + (f": {of['pin_error']}" if of["pin_error"] else "")
        if of["pin_left"]
        else ", pinned"
    )


@cli.command()
@click.argument("image")
@click.option("--namespace", "-n", default="default", envvar="CONTAINERD_NAMESPACE", help="containerd's, for names that only it knows.")
@click.option("--no-wait", is_flag=True, help="Do not wait until all is fetched.")
@click.pass_obj
def pin(config_path: Path | None, image: str, namespace: str, no_wait: bool) -> None:
    """Keep an image whole in the cache: fetch all of it, and evict none of it until `unpin`, or until the image is removed.

    IMAGE: its name, chain ID, or the digest or CID of a layer. Ctrl-C ends the waiting, not the fetching.
    """
    from snapshotter.daemon import pinning
    from snapshotter.daemon.config import load_config

    config = load_config(config_path)
    layers = pinning.pin(config, image, namespace)
    if no_wait:
        click.echo(f"{image}: {len(layers)} layers are pinned, and fetched in the background")
        return
    terminal = sys.stderr.isatty()

    def show(left: int) -> None:
        if terminal:
            click.echo(f"\r{left:>16,} bytes to come", err=True, nl=False)

    try:
        pinning.follow(config, layers, show)
    finally:
        if terminal:
            click.echo(err=True)
    click.echo(f"{image}: {len(layers)} layers are pinned, and here completely")


@cli.command()
@click.argument("image")
@click.option("--namespace", "-n", default="default", envvar="CONTAINERD_NAMESPACE", help="containerd's, for names that only it knows.")
@click.pass_obj
def unpin(config_path: Path | None, image: str, namespace: str) -> None:
    """Let the cache evict an image again. Give the name that it was pinned by."""
    from snapshotter.daemon import pinning
    from snapshotter.daemon.config import load_config

    layers = pinning.unpin(load_config(config_path), image, namespace)
    click.echo(f"{image}: {len(layers)} layers are not pinned by this name any more")


@cli.command()
def config() -> None:
    """Print a configuration with every default."""
    from snapshotter.daemon.config import DEFAULT_TOML

    click.echo(DEFAULT_TOML, nl=False)


def main() -> int:
    """Run the command in ``sys.argv``; the exit status: 0, 1 (failed), 2 (usage), 130 (Ctrl-C)."""
    try:
        cli.main(sys.argv[1:], prog_name="ipfs-snapshotter", standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        return _fail(error.format_message(), "ipfs-snapshotter --help", 2)
    except click.Abort:
        return 130
    except IpfsStoreError as error:
        return _fail(error.message, error.hint, 1)
    except click.ClickException as error:
        return _fail(error.format_message(), None, 1)
    except OSError as error:
        return _fail(str(error), None, 1)
    return 0


def _fail(message: str, hint: str | None, status: int) -> int:
    click.echo(f"ipfs-snapshotter: error: {' '.join(message.split())}", err=True)
    if hint:
        click.echo(f"hint: {' '.join(hint.split())}", err=True)
    return status
