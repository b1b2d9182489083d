"""Options that say how layers are to be written, shared by all commands that convert, under the names that `ctr-remote` has for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ipfs_store.cli.settings import Size

if TYPE_CHECKING:
    from ipfs_store.formats.options import Audience, WriteOptions

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_TOP_ZSTD = 19


def format_options(function: Decorated) -> Decorated:
    """``--estargz-...`` and ``--zstdchunked-...``; what they say is gathered by ``FormatRequest``."""
    for option in reversed(
        (
            click.option("--estargz-record-in", type=_FILE, metavar="FILE", help="Files to put first: a record of `ctr-remote optimize`."),
            click.option("--estargz-compression-level", type=click.IntRange(0, 9), metavar="N", help="0 to 9 [4]."),
            click.option("--estargz-chunk-size", type=Size(), metavar="SIZE", help="What is fetched at once [256KiB]."),
            click.option(
                "--estargz-min-chunk-size", type=Size(), metavar="SIZE", help="Small files share a gzip member of so many bytes [0]."
            ),
            click.option("--zstdchunked", is_flag=True, help="Convert layers to zstd:chunked."),
            click.option("--zstdchunked-record-in", type=_FILE, metavar="FILE", help="As --estargz-record-in."),
            click.option(
                "--zstdchunked-compression-level", type=click.IntRange(1, 22), metavar="N", help="1 to 22 [2]; 19 is the highest used."
            ),
            click.option("--zstdchunked-chunk-size", type=Size(), metavar="SIZE", help="What is fetched at once [256KiB]."),
            click.option(
                "--zstdchunked-audience",
                type=click.Choice(["stargz-snapshotter", "containers-storage"]),
                default="stargz-snapshotter",
                show_default=True,
                help="Whose annotations zstd:chunked layers get: Podman's and CRI-O's tools refuse those of both.",
            ),
            # Ours are the same bytes at any number of workers, and isal unpacks faster than any helper: taken for scripts that have them.
            click.option("--estargz-parallelism", type=int, hidden=True, expose_value=False),
            click.option("--estargz-gzip-helper", "--GH", hidden=True, expose_value=False),
        )
    ):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatRequest:
    """What the options said."""

    estargz: bool
    zstdchunked: bool
    uncompress: bool = False
    estargz_record_in: Path | None = None
    estargz_compression_level: int | None = None
    estargz_chunk_size: int | None = None
    estargz_min_chunk_size: int | None = None
    estargz_external_toc: bool = False
    estargz_keep_diff_id: bool = False
    zstdchunked_record_in: Path | None = None
    zstdchunked_compression_level: int | None = None
    zstdchunked_chunk_size: int | None = None
    zstdchunked_audience: Audience = "stargz-snapshotter"

    def everywhere(self, chunk_size: int | None, level: int | None) -> FormatRequest:
        """With these in place of what was not said of the format that is written; raises UsageError."""
        if self.estargz and level is not None and level > 9:
            raise click.BadParameter(f"{level} is not in the range of eStargz, 0 to 9", param_hint="--level")
        return replace(
            self,
            estargz_chunk_size=_either(self.estargz_chunk_size, chunk_size),
            estargz_compression_level=_either(self.estargz_compression_level, level),
            zstdchunked_chunk_size=_either(self.zstdchunked_chunk_size, chunk_size),
            zstdchunked_compression_level=_either(self.zstdchunked_compression_level, level),
        )

    def options(self) -> WriteOptions | None:
        """How layers are written; None: not at all. Raises UsageError, InvalidInput, OSError."""
        from ipfs_store.formats.options import CHUNK_SIZE, WriteOptions
        from ipfs_store.images.conversion.record import read_record

        chosen = [name for name in ("estargz", "zstdchunked", "uncompress") if getattr(self, name)]
        if len(chosen) > 1:
            raise click.UsageError(f"--{chosen[0]} and --{chosen[1]} exclude each other")
        if self.estargz_keep_diff_id and not self.estargz_external_toc:
            raise click.UsageError("--estargz-keep-diff-id needs --estargz-external-toc")
        if self.estargz_keep_diff_id and self.estargz_record_in is not None:
            raise click.UsageError("--estargz-keep-diff-id and --estargz-record-in exclude each other")
        if self.zstdchunked:
            record = self.zstdchunked_record_in
            level = self.zstdchunked_compression_level
            return WriteOptions(
                "zstd:chunked",
                chunk_size=_chunk(self.zstdchunked_chunk_size, "--zstdchunked-chunk-size") or CHUNK_SIZE,
                level=None if level is None else max(1, min(level, _TOP_ZSTD)),
                prioritized=read_record(record) if record is not None else (),
                audience=self.zstdchunked_audience,
            )
        if self.estargz:
            record = self.estargz_record_in
            return WriteOptions(
                "estargz",
                chunk_size=_chunk(self.estargz_chunk_size, "--estargz-chunk-size") or CHUNK_SIZE,
                min_chunk_size=self.estargz_min_chunk_size or 0,
                level=self.estargz_compression_level,
                prioritized=read_record(record) if record is not None else (),
                external_toc=self.estargz_external_toc,
                keep_diff_id=self.estargz_keep_diff_id,
            )
        return WriteOptions("tar") if self.uncompress else None

    @property
    def reuses(self) -> bool:
        """Whether a layer that has the format already is right as it is: nothing was said of how it is to be."""
        said = (
            self.estargz_record_in, self.estargz_compression_level, self.estargz_chunk_size, self.estargz_min_chunk_size,
            self.zstdchunked_record_in, self.zstdchunked_compression_level, self.zstdchunked_chunk_size,
        )  # fmt: skip
        plain = not self.estargz_external_toc and not self.estargz_keep_diff_id and self.zstdchunked_audience == "stargz-snapshotter"
        return plain and not any(value is not None for value in said)


def _either(one: int | None, other: int | None) -> int | None:
    return other if one is None else one


def _chunk(size: int | None, option: str) -> int:
    """Bytes; 0 is the default, as it is for `ctr-remote`."""
    if size and not 4 << 10 <= size <= 64 << 20:
        raise click.BadParameter("a chunk has 4 KiB to 64 MiB", param_hint=option)
    return size or 0


def parse_credentials(text: str | None, option: str = "--creds") -> tuple[str, str] | None:
    """``USER[:PASSWORD]``; a password that is left out is asked for."""
    if text is None:
        return None
    user, colon, password = text.partition(":")
    if not user:
        raise click.BadParameter("expected USER or USER:PASSWORD", param_hint=option)
    return user, password if colon else click.prompt(f"Password of {user}", hide_input=True, err=True)
