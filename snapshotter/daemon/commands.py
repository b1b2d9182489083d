"""``ipfs-store doctor``: what is loaded to show its help. The work is in ``doctor``."""

from __future__ import annotations

from pathlib import Path

import click

from ipfs_store.cli.command import Command


@click.command(
    cls=Command,
    short_help="Check this machine, and say how to mend what is wrong.",
    examples="""
    ipfs-store doctor                         # everything: kernel, FUSE, daemon, containerd, node, peers, cache, disk
    ipfs-store doctor --config F              # with another configuration of ipfs-snapshotter
    ipfs-store doctor --json                  # for programs
    """,
)
@click.option("--config", "config_path", type=click.Path(dir_okay=False, path_type=Path), envvar="IPFS_SNAPSHOTTER_CONFIG",
              help="Configuration of ipfs-snapshotter (default: /etc/ipfs-snapshotter/config.toml, if it is there).")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(context: click.Context, config_path: Path | None, as_json: bool) -> None:
    """Check what lazy containers need on this machine. The exit status is 1 if anything is wrong."""
    import json
    from dataclasses import asdict

    from snapshotter.daemon.config import load_config
    from snapshotter.daemon.doctor import examine

    findings = examine(load_config(config_path))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(f"{finding.state:5} {finding.about:12} {finding.what}")
            if finding.mend:
                click.echo(f"{'':18} -> {finding.mend}")
    if any(finding.state == "wrong" for finding in findings):
        context.exit(1)
