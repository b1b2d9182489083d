"""What would take all memory or time is refused, or done, by a process that may have 4 GiB of addresses and a minute."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.formats.bombs import BOMBS, MEMORY

MESSAGES = {
    "gzip_toc": "holds more than 268435456 bytes",
    "zstd_toc": "is no table of contents",
    "empty_members": "has over 1000 gzip members",
    "empty_frames": "ends after 0 of the 400 bytes",
    "entries": "over 1000000 entries, which is the limit",
    "attributes_of_a_file": "bytes of extended attributes in the TOC, over the limit of 1048576",
    "attributes_of_many_files": "over 33554432 bytes of different extended attributes",
    "half_characters": "is no table of contents",
    "circle_of_links": "leads back to itself",
    "holes": "and all holes may have 1099511627776 together",
    "plain_zeros": "the layer's tar ends inside of the contents of its entry 1",
    "plain_header": "an extended header has 8589934592 bytes, over the limit of",
    "plain_hole": "a sparse map that does not fit its size of 2305843009213693952",
    "plain_headers": "the layer has over 1000000 entries",
}
HARMLESS = set(BOMBS) - set(MESSAGES)
"""What is within the limits is decoded within them."""


@pytest.mark.parametrize("name", BOMBS)
def test_it_ends_with_an_error_that_says_why_or_with_nothing_lost(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", "tests.formats.bombs", name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout)
    assert seen["peak"] < MEMORY
    if name in HARMLESS:
        assert not seen["error"], seen
    else:
        assert seen["error"] == "InvalidLayer" and MESSAGES[name] in seen["message"], seen
