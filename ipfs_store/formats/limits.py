"""How much of anything a layer may make us hold, so that no blob costs more than a known amount of time and memory.

A layer over a limit is refused with InvalidLayer, and can still be pulled the ordinary way.
"""

from __future__ import annotations

MAX_TOC = 256 << 20
"""Bytes of an uncompressed TOC. The reference indents its JSON, 420 bytes an entry: room for 600,000 files. containers/storage stops at 150 MiB."""

MAX_ENTRIES = 1_000_000
"""Items of a TOC, chunks and directories that it leaves out included: some 600 bytes each in memory. The largest layers seen have 400,000."""

MAX_XATTRS_OF_FILE = 1 << 20
"""Bytes of one entry's extended attributes in the JSON: Linux lists 64 KiB of names, and takes values of 64 KiB."""

MAX_XATTRS = 32 << 20
"""The same of all entries together, equal ones counted once: a name without a value takes ten times its JSON in memory."""

MAX_SURROGATES_TOC = 64 << 20
"""Bytes of a TOC with names that are no UTF-8, which only this project writes: such a one is decoded by a slower parser, which first makes
objects of everything (up to 20 bytes for each of the JSON's)."""

MAX_CHUNK = 256 << 20
"""Bytes of one uncompressed chunk, which is decompressed and verified as a whole. Writers use 64 KiB to 10 MiB; containers/storage cuts by
content, so that a file of one repeated byte is a single chunk however long it is."""

MAX_STREAM = 512 << 20
"""Bytes that are decompressed to reach the end of a chunk inside its gzip member or zstd frame (0.6 s at isal's 870 MB/s)."""

MAX_PATH = 4095
"""Bytes of a path or a link's target: Linux's PATH_MAX without the final zero."""

MAX_NAME = 255
"""Bytes of one path component: Linux's NAME_MAX."""

MAX_IMPLIED_PATHS = 64 << 20
"""Characters of all paths of directories that a TOC implies without naming them: ``a/a/a/...`` would make thousands of each entry."""

MAX_ZSTD_WINDOW = 128 << 20
"""Memory that a zstd frame may ask for: what the zstd tool accepts without ``--long`` (RFC 8878, section 3.1.1.1.2, recommends 8 MiB at least)."""

TAIL = 64 << 10
"""Bytes read at once from the end of a blob: footer and, up to some 900 files, the whole TOC (70 bytes an entry, compressed)."""

ZERO_PIECE = 4 << 20
"""Bytes of a hole that are handed out as one chunk."""

MAX_TAR_EXTENSION = 16 << 20
"""Bytes of one extended header of a tar: names of 4 KiB, and extended attributes of 64 KiB each at most (Linux); Go stops at 1 MiB."""

MAX_SPARSE = 64 << 30
"""Bytes of a sparse file in a tar, whose holes are written out as zeros: five minutes at 200 MB/s, where a header of 512 bytes could ask for eight exabytes."""

MAX_HOLES = 1 << 40
"""Bytes of all holes of a layer: a quarter of a million of those pieces, 70 bytes each in memory."""
