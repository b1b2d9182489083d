"""``scripts/bench NAME [--json FILE] [--check]``: runs one benchmark and prints its rows."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from scripts.benchmarks.rows import Row

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem != "rows")


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the rows there as JSON too.")
@click.option("--check", is_flag=True, help="Exit 1 where a target is missed.")
def main(name: str, file: Path | None, check: bool) -> None:
    """Run the benchmark NAME and print case, metric, ours, reference, ratio, target."""
    rows: list[Row] = importlib.import_module(f"scripts.benchmarks.{name}").run()
    table = Table("case", "metric", "ours", "reference", "ratio", "target", "")
    for row in rows:
        table.add_row(
            row.case, row.metric, row.shown(row.ours), row.shown(row.reference), row.shown_ratio(), row.target_text(), row.verdict()
        )
    Console(width=140).print(table)
    if file:
        file.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    if check and any(row.met is False for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
