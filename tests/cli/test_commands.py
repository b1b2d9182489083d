"""What all commands have in common: help with examples, one-line errors, exit statuses, quick answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner

from ipfs_store.cli.app import COMMANDS, cli
from ipfs_store.cli.command import Command
from tests.cli.conftest import Done

Run = Callable[..., Done]


def every_command() -> list[list[str]]:
    found = [[name] for name in COMMANDS]
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        if isinstance(command, click.Group):
            found += [[name, below] for below in command.commands]
    return found


@pytest.mark.parametrize("name", every_command(), ids=" ".join)
def test_help_has_examples(name: list[str]) -> None:
    shown = CliRunner().invoke(cli, [*name, "--help"])
    assert shown.exit_code == 0
    _, _, examples = shown.output.partition("Examples:\n")
    assert examples
    for line in examples.splitlines():
        command, _, what = line.strip().partition("#")
        assert "ipfs-store" in command
        assert what
        assert any(word in COMMANDS for word in command.split())


def test_the_help_of_all_names_all() -> None:
    shown = CliRunner().invoke(cli, ["--help"])
    assert shown.exit_code == 0
    for name, line in COMMANDS.items():
        assert f"  {name} " in shown.output
        command = cli.get_command(click.Context(cli), name)
        assert isinstance(command, Command)
        assert command.get_short_help_str(200) == line


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["ipfs-push", "--help"],
        ["cat", "--help"],
        ["pin", "ls", "--help"],
        ["inspect", "--help"],
        ["export", "--help"],
        ["completion", "bash"],
    ],
)
def test_what_only_prints_loads_little(arguments: list[str]) -> None:
    heavy = "{'trio', 'httpx', 'multiformats', 'grpc', 'cbor2', 'rich', 'ipfshttpclient'}"
    code = (
        f"import sys; sys.argv = ['ipfs-store', *{arguments!r}]; from ipfs_store.cli import main; main(); print({heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["cat", "notacid"], 1, "'notacid' is neither a CID nor the name of a pin"),
        (["cat", "ipfs://bafkrei"], 1, "'ipfs://bafkrei' is not a CID"),
        (["cat", "b" + "a" * 5000], 1, "is neither a CID nor"),
        (["pin", "add", "x y\nz"], 1, "is neither a CID nor"),
        (["pin", "rm", "QmNothing"], 1, "is neither a CID nor"),
        (["rm", "nothing"], 1, "is neither a CID nor"),
        (["inspect", "/ipfs/nothing"], 1, "is not a CID"),
        (["ls", "nothing"], 1, "is neither a CID nor"),
        (["ls", "--platform", "a/b/c/d", "x"], 1, "is not a platform"),
        (["diff", "one"], 2, "Missing argument"),
        (["verify", "nothing"], 1, "is neither a CID nor"),
        (["import", "./missing.car"], 1, "./missing.car: No such file or directory"),
        (["export", "-o", "/nowhere/at/all", "x"], 1, "No such file or directory"),
        (["ipfs-push", "--estargz", "--preserve-digests", "x"], 2, "--preserve-digests and --referrers keep them"),
        (["get-toc-digest", "./missing"], 1, "./missing: no such file or folder"),
        (["ipfs-push", "./missing.tar"], 1, "./missing.tar: no such file or folder"),
        (["ipfs-push", "Not/A-Name"], 1, "is not an image name"),
        (["ipfs-push", "--platform", "a/b/c/d", "x"], 1, "is not a platform"),
        (["ipfs-push", "--name", "Not a name", "x"], 1, "is not an image name"),
        (["serve", "--listen", "nonsense"], 1, "'nonsense' is not an address"),
        (["--node", "kubo:127.0.0.1:1", "node"], 1, "127.0.0.1:1"),
        (["--node", "other", "node"], 2, "none of auto, embedded, kubo"),
        (["--timeout", "soon", "node"], 2, "is not a time"),
        (["--timeout", "-1", "node"], 2, "is not a time"),
        (["nod"], 2, "did you mean 'node'"),
        (["cat"], 2, "Missing argument"),
        (["cat", "--offset", "1x", "y"], 2, "is not a size"),
        (["ipfs-push", "--chunk-size", "1", "x"], 2, "4 KiB to 64 MiB"),
        (["ipfs-push", "--level", "10", "x"], 2, "not in the range"),
        (["ipfs-push", "--creds", ":x", "x"], 2, "USER:PASSWORD"),
        (["ipfs-push", "--estargz=maybe", "x"], 2, "--estargz"),
        (["completion", "tcsh"], 2, "'tcsh'"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_perhaps_a_hint(arguments: list[str], status: int, told: str, ipfs_store: Run) -> None:
    done = ipfs_store(*arguments)
    assert (done.status, done.out) == (status, b"")
    error, *hints = done.err.splitlines()
    assert error.startswith("ipfs-store: error: ")
    assert told in error
    assert len(error) < 400
    assert all(hint.startswith("hint: ") for hint in hints)
    assert len(hints) <= 1


@pytest.mark.parametrize("arguments", [[], ["pin"]])
def test_without_a_command_the_help_is_shown(arguments: list[str], ipfs_store: Run) -> None:
    done = ipfs_store(*arguments)
    assert (done.status, done.out) == (2, b"")
    assert done.err.startswith("Usage: ipfs-store")
    assert "\nCommands:\n" in done.err


def test_flags_take_values_as_those_of_go_tools_do() -> None:
    seen: list[tuple[bool, bool]] = []

    @click.command(cls=Command)
    @click.option("--a/--no-a", default=True)
    @click.option("--b", is_flag=True)
    @click.option("--c", default="")
    def command(a: bool, b: bool, c: str) -> None:
        assert c in ("", "true")
        seen.append((a, b))

    for line in ("", "--a=false --b=true", "--a=0 --b=1", "--no-a --b", "--a=TRUE --b=false", "--c=true"):
        assert CliRunner().invoke(command, line.split()).exit_code == 0, line
    assert seen == [(True, False), (False, True), (False, True), (False, True), (True, False), (True, False)]
    assert CliRunner().invoke(command, ["--b=perhaps"]).exit_code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(shell: str, ipfs_store: Run) -> None:
    assert "_IPFS_STORE_COMPLETE" in ipfs_store("completion", shell).text
