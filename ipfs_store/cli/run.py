"""From an exception to one line and an exit status, and from a signal to an orderly end."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

import click

from ipfs_store.cli.command import NobodyReads
from ipfs_store.errors import IpfsStoreError

FAILED, USAGE, INTERRUPTED, NOBODY_READS = 1, 2, 130, 141


def run(arguments: Sequence[str]) -> int:
    """Run the command line; whatever happens becomes at most two lines on stderr and an exit status."""
    from ipfs_store.cli.app import cli

    terminated: list[int] = []
    try:
        with _termination_interrupts(terminated):
            returned = cli.main(list(arguments), prog_name="ipfs-store", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 the last place where anything can be told to a person
        if terminated:
            return 128 + terminated[0]
        return _report(error)
    return returned if isinstance(returned, int) else 0


def fail(message: str, hint: str | None = None) -> None:
    """``ipfs-store: error: message``, and the hint on a line of its own; never more lines than that."""
    click.echo(f"ipfs-store: error: {_one_line(message)}", err=True)
    if hint:
        click.echo(f"hint: {_one_line(hint)}", err=True)


@contextlib.contextmanager
def _termination_interrupts(terminated: list[int]) -> Iterator[None]:
    """SIGTERM and SIGHUP end a command as Ctrl-C does, by way of the handler that trio has for it, so that temporary files go."""

    def interrupt(number: int, _: FrameType | None) -> None:
        terminated.append(number)
        signal.raise_signal(signal.SIGINT)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # A shell starts what it puts in the background like that. Ctrl-C stays unheard, but for what we raise ourselves.
        before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _report(raised: BaseException) -> int:
    leaves = list(_leaves(raised))
    # A nursery gives back everything that went wrong in it: an interruption explains the rest, then our own errors do.
    error = min(leaves, key=_weight)
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return INTERRUPTED
    if isinstance(error, NobodyReads | BrokenPipeError):
        # What Python flushes at its end must not fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return USAGE
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx is not None else "ipfs-store"
        fail(error.format_message(), hint=f"{command} --help")
        return USAGE
    if _debug():
        import traceback

        traceback.print_exception(raised)
    if isinstance(error, IpfsStoreError):
        fail(error.message, error.hint)
    elif isinstance(error, click.ClickException):
        fail(error.format_message())
    elif isinstance(error, OSError) and error.errno is not None:
        path = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        full = "free some space, or name another folder" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
        fail(f"{path}{os.strerror(error.errno)}", full)
    else:
        text = str(error)
        fail(
            f"unexpected {type(error).__name__}" + (f": {text}" if text else ""), "ipfs-store --log-level debug ... shows where it happened"
        )
    return FAILED


def _weight(error: BaseException) -> int:
    order = (SystemExit, KeyboardInterrupt, click.Abort, IpfsStoreError, click.ClickException, NobodyReads, BrokenPipeError, OSError)
    return next((position for position, kind in enumerate(order) if isinstance(error, kind)), len(order))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _debug() -> bool:
    logging = sys.modules.get("logging")  # never loaded: nobody asked for more than the line
    return logging is not None and logging.getLogger().isEnabledFor(10)


def _one_line(text: str) -> str:
    return " ".join(text.split())
