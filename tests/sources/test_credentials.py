"""Where credentials come from: what docker login and podman login leave behind."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from ipfs_store.images.sources.credentials import Credentials, find_credentials

ALICE = {"auth": "YWxpY2U6c2VjcmV0"}  # alice:secret


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Docker's configuration file, not there yet, and nothing else of the machine's."""
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".docker").mkdir()
    return tmp_path / ".docker/config.json"


@pytest.mark.parametrize(
    ("key", "domain", "path"),
    [
        ("ghcr.io", "ghcr.io", "me/app"),
        ("https://ghcr.io", "ghcr.io", "me/app"),
        ("ghcr.io/me", "ghcr.io", "me/app"),
        ("ghcr.io/me/app", "ghcr.io", "me/app"),
        ("https://index.docker.io/v1/", "docker.io", "library/debian"),
        ("docker.io", "docker.io", "library/debian"),
        ("localhost:5000", "localhost:5000", "x"),
    ],
)
def test_a_registry_is_known_by_several_names(key: str, domain: str, path: str, config: Path) -> None:
    config.write_text(json.dumps({"auths": {key: ALICE, "other.example.org": {"auth": "eDp5"}}}))
    assert find_credentials(domain, path) == Credentials("alice", "secret")


def test_the_most_specific_counts(config: Path) -> None:
    config.write_text(json.dumps({"auths": {"ghcr.io": {"username": "all", "password": "x"}, "ghcr.io/me": ALICE}}))
    assert find_credentials("ghcr.io", "me/app") == Credentials("alice", "secret")
    assert find_credentials("ghcr.io", "you/app") == Credentials("all", "x")
    assert find_credentials("quay.io", "me/app") is None


def test_podmans_file_goes_first_where_it_is_named(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text(json.dumps({"auths": {"ghcr.io": {"username": "docker", "password": "x"}}}))
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {"ghcr.io": ALICE}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    assert find_credentials("ghcr.io") == Credentials("alice", "secret")


@pytest.mark.parametrize(
    ("content", "warned"),
    [
        ("not JSON", "no credentials are taken"),
        ("[]", "not a JSON object"),
        ('{"auths": {"ghcr.io": {"auth": "***"}}}', "not base64"),
        ('{"auths": []}', ""),
        ('{"auths": {"ghcr.io": {}}}', ""),
    ],
)
def test_what_cannot_be_read_is_passed_over(content: str, warned: str, config: Path, caplog: pytest.LogCaptureFixture) -> None:
    config.write_text(content)
    with caplog.at_level(logging.WARNING):
        assert find_credentials("ghcr.io") is None
    assert warned in caplog.text
    assert bool(caplog.text) == bool(warned)


@pytest.mark.parametrize(
    ("settings", "prints", "expected"),
    [
        ({"credsStore": "test"}, '{"Username":"alice","Secret":"secret"}', Credentials("alice", "secret")),
        ({"credHelpers": {"ghcr.io": "test"}}, '{"Username":"<token>","Secret":"t"}', Credentials(identity_token="t")),
        ({"credsStore": "test", "auths": {"ghcr.io": ALICE}}, "{}", Credentials("alice", "secret")),
        ({"credsStore": "test"}, "nonsense", None),
        ({"credsStore": "missing"}, "", None),
    ],
)
def test_a_helper_is_asked(
    settings: dict[str, Any], prints: str, expected: Credentials | None, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text(json.dumps(settings))
    helper = tmp_path / "docker-credential-test"
    helper.write_text(f"#!/bin/sh\n[ $1 = get ] && [ \"$(cat)\" = ghcr.io ] || exit 1\necho '{prints}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert find_credentials("ghcr.io") == expected


def test_a_password_is_never_printed() -> None:
    assert "secret" not in repr(Credentials("alice", "secret", "secret"))
