"""Image names mean here what they mean to docker and containerd."""

from __future__ import annotations

import pytest

from ipfs_store.errors import InvalidReference
from ipfs_store.oci import Reference

HEX = "ab" * 32


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("grafana/grafana", "docker.io/grafana/grafana:latest"),
        ("index.docker.io/library/debian:12", "docker.io/library/debian:12"),
        ("ghcr.io/owner/name:v1.2_3-rc", "ghcr.io/owner/name:v1.2_3-rc"),
        ("localhost/a", "localhost/a:latest"),
        ("localhost:5000/a/b/c:t", "localhost:5000/a/b/c:t"),
        ("host:5000/a", "host:5000/a:latest"),
        ("[::1]:5000/a:t", "[::1]:5000/a:t"),
        ("Registry/a", "Registry/a:latest"),
        ("a__b/c-d.e:1", "docker.io/a__b/c-d.e:1"),
        (f"debian@sha256:{HEX}", f"docker.io/library/debian@sha256:{HEX}"),
        (f"debian:12@sha256:{HEX}", f"docker.io/library/debian:12@sha256:{HEX}"),
    ],
)
def test_names_are_completed(text: str, full: str) -> None:
    reference = Reference.parse(text)
    assert str(reference) == full
    assert Reference.parse(full) == reference
    assert Reference.parse(reference.familiar) == reference


@pytest.mark.parametrize(
    "text",
    ["", ":", "@", "Debian", "debian:", "debian:a b", "debian:.x", "/debian", "debian/", "a//b", "../etc", "a/../b", "-a", "a..b",
     f"debian@sha256:{HEX[:-1]}", f"debian@md5:{HEX[:32]}", HEX, "a" * 256, "x:" + "t" * 129, "http://host/a", "host:port/a", "a\n", "é"],
)  # fmt: skip
def test_what_is_no_name_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        Reference.parse(text)
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_digest_decides_what_the_registry_is_asked_for() -> None:
    assert Reference.parse("debian:12").target == "12"
    assert Reference.parse(f"debian:12@sha256:{HEX}").target == f"sha256:{HEX}"
