"""``ipfs-store completion``."""

from __future__ import annotations

import click

from ipfs_store.cli.command import Command


@click.command(
    "completion",
    cls=Command,
    short_help="Print the completion script of a shell.",
    examples="""
    ipfs-store completion bash > /etc/bash_completion.d/ipfs-store      # for everybody
    source <(ipfs-store completion zsh)                                 # for this shell
    ipfs-store completion fish > ~/.config/fish/completions/ipfs-store.fish    # for yourself
    """,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that makes SHELL complete commands and options of ipfs-store."""
    from click.shell_completion import get_completion_class

    from ipfs_store.cli.app import cli

    found = get_completion_class(shell)
    if found is None:  # click has all three
        raise click.ClickException(f"no completion for {shell}")
    click.echo(found(cli, {}, "ipfs-store", "_IPFS_STORE_COMPLETE").source())
