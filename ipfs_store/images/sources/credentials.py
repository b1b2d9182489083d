"""Who we are to a registry: what ``docker login`` and ``podman login`` wrote, and the credential helpers they name."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)
_DOCKER_HUB = "https://index.docker.io/v1/"
_HELPER_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and password, or an identity token (OAuth 2 refresh token), which then goes before."""

    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an ``Authorization`` header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find_credentials(domain: str, path: str = "") -> Credentials | None:
    """Those for the repository ``path`` of the registry ``domain`` (``docker.io``, ``ghcr.io``), None where there are none.

    Looks where Docker and Podman look: ``$REGISTRY_AUTH_FILE``, ``$DOCKER_CONFIG/config.json`` or ``~/.docker/config.json``,
    ``$XDG_RUNTIME_DIR/containers/auth.json``. What cannot be read is logged and passed over. Synchronous: helpers are programs.
    """
    for file in _files():
        found = _in_file(file, domain, path)
        if found is not None:
            return found
    return None


def _files() -> Iterator[Path]:
    if given := os.environ.get("REGISTRY_AUTH_FILE"):
        yield Path(given)
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 (Path.home raises where there is none)
    yield Path(os.environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json"
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers" / "auth.json"
    yield home / ".config" / "containers" / "auth.json"


def _in_file(file: Path, domain: str, path: str) -> Credentials | None:
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("%s: no credentials are taken from it: %s", file, error)
        return None
    if not isinstance(value, dict):
        _log.warning("%s: no credentials are taken from it: not a JSON object", file)
        return None
    names = _names(domain, path)
    helpers, auths = _mapping(value, "credHelpers"), _mapping(value, "auths")
    for name in names:
        if isinstance(helper := helpers.get(name), str) and (found := _ask(helper, name)):
            return found
    for name in names:
        entry = auths.get(name)
        if isinstance(entry, dict) and (found := _of_entry(entry, f"{file}: {name}")):
            return found
    store = value.get("credsStore")
    if isinstance(store, str) and store:
        for name in names:
            if found := _ask(store, name):
                return found
    return None


def _names(domain: str, path: str) -> list[str]:
    """Keys under which credentials may stand, the most specific first (Podman has them by repository too)."""
    parts = path.split("/") if path else []
    names = ["/".join([domain, *parts[:count]]) for count in range(len(parts), -1, -1)]
    if domain == "docker.io":
        names += [_DOCKER_HUB, "index.docker.io", "registry-1.docker.io"]
    return [*names, f"https://{domain}", f"https://{domain}/v1/", f"https://{domain}/v2/"]


def _of_entry(entry: Mapping[str, Any], where: str) -> Credentials | None:
    token = entry.get("identitytoken")
    user, password = entry.get("username"), entry.get("password")
    if isinstance(entry.get("auth"), str) and entry["auth"]:
        try:
            user, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        except (binascii.Error, ValueError) as error:
            _log.warning("%s: its auth is not base64: %s", where, error)
            return None
        password = password.rstrip("\0")
    if isinstance(token, str) and token:
        return Credentials(user if isinstance(user, str) else "", "", token)
    if isinstance(user, str) and isinstance(password, str) and user:
        return Credentials(user, password)
    return None


def _ask(helper: str, name: str) -> Credentials | None:
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run([program, "get"], input=name.encode(), capture_output=True, timeout=_HELPER_SECONDS, check=True)
        value = json.loads(done.stdout)
        user, secret = str(value["Username"]), str(value["Secret"])
    except subprocess.CalledProcessError as error:
        _log.info("%s has nothing for %s: %s", program, name, (error.stdout or error.stderr).decode(errors="replace").strip()[:200])
        return None
    except (OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired) as error:
        _log.warning("%s cannot be asked for credentials: %s", program, error)
        return None
    return Credentials(identity_token=secret) if user == "<token>" else Credentials(user, secret)


def _mapping(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}
