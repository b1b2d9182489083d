"""The group of all commands. Each is loaded when it is named; its line in the help stands here, so that the help loads none."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click

from ipfs_store import __version__
from ipfs_store.cli.command import Group
from ipfs_store.cli.settings import Duration, Settings
from ipfs_store.extensions import entry_points, load

# Name -> line in the help. The module is commands/NAME.py with "-" as "_", the command in it is `command`.
COMMANDS = {
    "ipfs-push": "Push an image into IPFS and print its CID.",
    "convert": "Convert an image, from anywhere to anywhere.",
    "images": "List the images that this node keeps.",
    "inspect": "Show what an image is made of and what a pull would fetch.",
    "ls": "List files of an image.",
    "cat": "Write a file of an image, or the file behind a CID.",
    "diff": "Show what changes from one image to another.",
    "rm": "No longer keep images.",
    "verify": "Read all of an image and check it.",
    "export": "Write an image into a CAR file, for another machine to import.",
    "import": "Read images from a CAR file, check them, and keep them.",
    "serve": "Serve this node's blocks to other machines over HTTP.",
    "pin": "Keep, or no longer keep, what a CID links to.",
    "gc": "Delete every block that no pin keeps.",
    "node": "Show the node that commands talk to.",
    "get-toc-digest": "Print the TOC digests of lazily readable layers.",
    "completion": "Print the completion script of a shell.",
}
EXTENSIONS = "ipfs_store.commands"


class LazyGroup(Group):
    """Finds commands by name here first, then among the entry points of installed packages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, ours in the order of the help, then those of other packages."""
        return [*COMMANDS, *(name for name in sorted(entry_points(EXTENSIONS)) if name not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, loaded now; None if there is none of that name."""
        if cmd_name in COMMANDS:
            module = {"import": "import_"}.get(cmd_name, cmd_name.replace("-", "_"))  # a word of Python
            return _as_command(f"ipfs_store.cli.commands.{module}:command")
        target = entry_points(EXTENSIONS).get(cmd_name)
        return None if target is None else _as_command(target)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and lines, without loading a command of ours; a broken command of another package does not break the help."""
        rows = list(COMMANDS.items())
        for name in self.list_commands(ctx)[len(rows) :]:
            try:
                command = self.get_command(ctx, name)
            except click.ClickException as error:
                rows.append((name, f"({error.message})"))
            else:
                rows.append((name, command.get_short_help_str(limit=90) if command is not None else ""))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest name in the message where there is one."""
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            from difflib import get_close_matches

            near = get_close_matches(args[0], self.list_commands(ctx), n=1)
            ctx.fail(f"no command {args[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)


def _as_command(target: str) -> click.Command:
    try:
        command = load(target)
    except (ImportError, AttributeError) as error:
        raise click.ClickException(f"{target} cannot be loaded: {error}") from error
    if not isinstance(command, click.Command):
        raise click.ClickException(f"{target} is no command but a {type(command).__name__}")
    return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    examples="""
    ipfs-store ipfs-push debian:12                        # from a registry; prints the image's CID
    ipfs-store ipfs-push image.tar                        # from an archive, found out by its content
    ipfs-store --peer http://host:8421 cat CID -o file    # from another machine
    ipfs-store COMMAND --help                             # options and examples of a command
    """,
)
@click.version_option(__version__, message="ipfs-store %(version)s")
@click.option("--node", metavar="NODE", default="auto", show_default=True, envvar="IPFS_STORE_NODE",
              help="auto, embedded, kubo or kubo:ADDRESS.")  # fmt: skip
@click.option("--node-path", type=click.Path(file_okay=False, path_type=Path), envvar="IPFS_STORE_NODE_PATH",
              help="Folder of the embedded node.")  # fmt: skip
@click.option("--peer", "peers", multiple=True, metavar="URL", envvar="IPFS_STORE_PEER",
              help="Ask this machine for blocks (http://host:port; may be repeated).")  # fmt: skip
@click.option("--timeout", type=Duration(), envvar="IPFS_STORE_TIMEOUT", help="When a block counts as found nowhere (30, 90s, 2m).")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="warning", show_default=True,
              envvar="IPFS_STORE_LOG_LEVEL", help="What is logged on stderr; debug shows traces of errors.")  # fmt: skip
@click.pass_context
def cli(ctx: click.Context, node: str, node_path: Path | None, peers: tuple[str, ...], timeout: float | None, log_level: str) -> None:
    """Container images in IPFS: push once, start anywhere from the CID.

    Options before the command can also be set in the environment: IPFS_STORE_NODE, IPFS_STORE_NODE_PATH, IPFS_STORE_PEER (several
    with spaces between), IPFS_STORE_TIMEOUT, IPFS_STORE_LOG_LEVEL.
    """
    if node not in ("auto", "embedded", "kubo") and not node.startswith("kubo:"):
        raise click.BadParameter(f"{node!r} is none of auto, embedded, kubo and kubo:ADDRESS", ctx, param_hint="--node")
    logging = import_module("logging")  # 8 ms that the help does not need
    logging.basicConfig(level=log_level.upper(), format="ipfs-store: %(levelname)s: %(name)s: %(message)s")
    if log_level in ("debug", "info"):
        for chatty in ("httpx", "httpcore", "urllib3"):  # one line per block would bury what matters
            logging.getLogger(chatty).setLevel(logging.WARNING)
    ctx.obj = Settings(node, node_path, peers, timeout)
