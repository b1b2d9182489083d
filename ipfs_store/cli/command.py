"""What every command shares: examples in its help, and flags that take ``=false`` as those of ctr and other Go tools do."""

from __future__ import annotations

from typing import Any

import click

_TRUE = frozenset({"true", "t", "1", "yes", "on"})
_FALSE = frozenset({"false", "f", "0", "no", "off"})


class NobodyReads(Exception):
    """Whoever read the output has gone. Of a broken pipe, click would make an exit status that also stands for errors."""


class Command(click.Command):
    """A command whose help ends with ``examples``, one a line: the command, and behind ``#`` what it does."""

    def __init__(self, *arguments: Any, examples: str = "", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.examples = [line.strip() for line in examples.strip().splitlines()]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads ``--flag=BOOL`` as ``--flag`` or ``--no-flag``."""
        return super().parse_args(ctx, [kept for argument in args if (kept := self._without_value(argument)) is not None])

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; raises NobodyReads."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise NobodyReads from error

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the examples."""
        if self.examples:
            with formatter.section("Examples"):
                width = max(len(line.partition("#")[0].rstrip()) for line in self.examples)
                for line in self.examples:
                    command, _, what = (part.strip() for part in line.partition("#"))
                    formatter.write(f"{' ' * formatter.current_indent}{command:{width}}  {'# ' if what else ''}{what}".rstrip() + "\n")

    def _without_value(self, argument: str) -> str | None:
        name, equals, value = argument.partition("=")
        if not equals or not name.startswith("--") or value.lower() not in _TRUE | _FALSE:
            return argument
        for option in self.params:
            if isinstance(option, click.Option) and option.is_flag and name in option.opts:
                if value.lower() in _TRUE:
                    return name
                return option.secondary_opts[0] if option.secondary_opts else None
        return argument


class Group(Command, click.Group):
    """Commands below a command; its help has examples too."""

    command_class = Command
