"""Runs the targets under atheris; ``scripts/fuzz`` is its command."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

CORPUS = Path.home() / ".cache/ipfs-store/fuzz"
# No input that a check takes may hold this much: the limits of formats.limits are tested by bombs of their own.
_MEMORY_MB = 1500
_SECONDS_OF_ONE_INPUT = 20


@dataclass(frozen=True)
class Outcome:
    """What one run of a target came to."""

    name: str
    executions: int
    seconds: float
    status: int
    text: str


@click.command()
@click.option("--seconds", default=120, show_default=True, help="For all targets together, on one processor.")
@click.option("--jobs", default=1, show_default=True, help="Targets at a time.")
@click.option(
    "--corpus", default=CORPUS, show_default=True, type=click.Path(path_type=Path), help="Inputs found earlier, kept and added to."
)
@click.option("--found", default=Path("fuzz-found"), show_default=True, type=click.Path(path_type=Path), help="Where failing inputs go.")
@click.option("--seed", type=click.IntRange(1), help="The same inputs on every machine, as far as the seconds go: no corpus, no chance.")
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
def main(seconds: int, jobs: int, corpus: Path, found: Path, seed: int | None, targets: tuple[str, ...]) -> None:
    """Fuzz TARGETs (default: all), each in a process of its own; exit 1 where an input was found that fails.

    Such an input belongs into tests/fuzz/found/TARGET, where the tests replay it.
    """
    from tests.fuzz.targets import TARGETS

    for name in targets:
        if name not in TARGETS:
            raise click.UsageError(f"no target {name!r}: {', '.join(TARGETS)}")
    chosen = targets or tuple(TARGETS)
    with tempfile.TemporaryDirectory() as fresh, ThreadPoolExecutor(jobs) as pool:
        kept = corpus if seed is None else Path(fresh)
        run = partial(_run, seconds=max(seconds // len(chosen), 1), corpus=kept, found=found, seed=seed or 0)  # 0: by chance
        failed = False
        for outcome in pool.map(run, chosen):
            word = "ok" if outcome.status == 0 else "FAILED"
            click.echo(f"{outcome.name:12} {outcome.executions:10,} executions {outcome.seconds:6.0f} s  {word}")
            if outcome.status:
                failed = True
                click.echo(outcome.text)
    if found.is_dir() and not any(found.iterdir()):
        found.rmdir()
    sys.exit(1 if failed else 0)


def _run(name: str, *, seconds: int, corpus: Path, found: Path, seed: int) -> Outcome:
    from tests.fuzz.targets import TARGETS

    kept, artifacts = corpus / name, found / name
    kept.mkdir(parents=True, exist_ok=True)
    artifacts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, input in enumerate(TARGETS[name].seeds()):
            (Path(folder) / f"{number:04d}").write_bytes(input)
        begin = time.monotonic()
        done = subprocess.run(
            [
                sys.executable, "-m", "tests.fuzz.one", name, kept, folder, f"-max_total_time={seconds}", f"-timeout={_SECONDS_OF_ONE_INPUT}",
                f"-rss_limit_mb={_MEMORY_MB}", f"-max_len={TARGETS[name].longest}", f"-artifact_prefix={artifacts}/", "-print_final_stats=1",
                f"-report_slow_units={_SECONDS_OF_ONE_INPUT}", f"-seed={seed}",
            ],
            capture_output=True, text=True, errors="replace",
        )  # fmt: skip
    count = re.search(r"stat::number_of_executed_units:\s+(\d+)", done.stderr) or re.search(r"Done (\d+) runs", done.stderr)
    if not any(artifacts.iterdir()):
        artifacts.rmdir()
    _, _, trace = done.stdout.rpartition("Uncaught Python exception")
    written = [line for line in done.stderr.splitlines() if "Test unit written" in line or "ERROR: libFuzzer" in line]
    text = "\n".join([trace.strip() or done.stderr[-2000:], *written])
    return Outcome(name, int(count[1]) if count else 0, time.monotonic() - begin, done.returncode, text)


if __name__ == "__main__":
    main()
