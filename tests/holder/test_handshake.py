"""The kept INIT and its reply, from bytes (captured from a kernel 6.18 and libfuse 3.14)."""

from __future__ import annotations

import struct

import pytest

from snapshotter.holder.handshake import Handshake, NotInit

REQUEST = struct.pack("<IIQQIIIHHIIIII", 104, 26, 2, 0, 0, 0, 0, 0, 0, 7, 45, 131072, 1946157051, 1533) + bytes(44)
PARALLEL_DIROPS = 1 << 18
REPLY = struct.pack("<IiQIIIIHHIIHHI", 80, 0, 2, 7, 31, 131072, 0x4040B039, 0, 0, 1 << 20, 1, 256, 0, 0) + bytes(28)


def reply_fields(reply: bytes) -> dict[str, int]:
    names = ("major", "minor", "max_readahead", "flags", "max_background", "congestion_threshold", "max_write", "time_gran", "max_pages")
    return dict(zip(names, struct.unpack_from("<IIIIHHIIH", reply, 16), strict=True))


def test_the_reply_is_changed_where_pyfuse3_cannot_say_it() -> None:
    before, after = reply_fields(REPLY), reply_fields(Handshake(REQUEST).answered(REPLY).reply)
    assert after == before | {
        "max_background": 512, "congestion_threshold": 384, "max_readahead": 4 << 20, "flags": 0x4040B039 | PARALLEL_DIROPS,
    }  # fmt: skip


def test_the_next_data_plane_is_offered_what_was_agreed_upon_only() -> None:
    again = Handshake(REQUEST).answered(REPLY).replayed()
    assert len(again) == len(REQUEST) and again[:52] == REQUEST[:52]
    flags, flags2 = struct.unpack_from("<II", again, 52)
    assert flags == 1946157051 & (0x4040B039 | PARALLEL_DIROPS) and flags2 == 0
    assert Handshake(REQUEST).replayed() == REQUEST


@pytest.mark.parametrize(("flags", "flags2", "expected"), [(1 << 30, 1 << 7, True), (1 << 30, 0, False), (0, 1 << 7, False)])
def test_resend_is_known_from_what_the_kernel_offers(flags: int, flags2: int, expected: bool) -> None:
    request = bytearray(REQUEST)
    struct.pack_into("<II", request, 52, flags, flags2)
    assert Handshake(bytes(request)).resend is expected


def test_it_is_the_same_after_a_file() -> None:
    handshake = Handshake(REQUEST).answered(REPLY)
    assert Handshake.decode(handshake.encode()) == handshake


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"request": "00", "reply": ""}', '{"request": "zz", "reply": ""}'])
def test_what_is_no_handshake_is_refused(text: str) -> None:
    with pytest.raises(NotInit):
        Handshake.decode(text)
