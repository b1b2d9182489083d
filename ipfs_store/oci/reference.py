"""Image names as Docker and containerd write them (distribution/reference): ``debian:12`` is ``docker.io/library/debian:12``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ipfs_store.errors import InvalidDigest, InvalidReference
from ipfs_store.oci.digest import Digest

_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
_DOMAIN = re.compile(
    r"(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*"
    r"|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_HEX = re.compile(r"[0-9a-f]{64}")
_MAX_NAME = 255
_HINT = "an image name looks like debian:12, ghcr.io/owner/name:tag or name@sha256:<64 hex digits>"


@dataclass(frozen=True, slots=True)
class Reference:
    """A full name: where the registry is, the repository in it, and a tag, a digest or both (then the digest decides)."""

    domain: str
    path: str
    tag: str = ""
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """What ``text`` names, with ``docker.io``, ``library/`` and ``:latest`` filled in where left out; raises InvalidReference."""
        shown = repr(text[:100])
        name, at, digest_text = text.partition("@")
        digest = None
        if at:
            try:
                digest = Digest.parse(digest_text)
            except InvalidDigest as error:
                raise InvalidReference(f"{shown} is not an image name: {error}", hint=_HINT) from error
        tag = ""
        if ":" in name.rpartition("/")[2]:
            name, _, tag = name.rpartition(":")
            if not _TAG.fullmatch(tag):
                raise InvalidReference(f"{shown} is not an image name: bad tag {tag[:100]!r}", hint=_HINT)
        domain, path = _split_domain(name)
        if not _DOMAIN.fullmatch(domain):
            raise InvalidReference(f"{shown} is not an image name: bad registry {domain[:100]!r}", hint=_HINT)
        if not all(_COMPONENT.fullmatch(part) for part in path.split("/")):
            why = "upper-case letters" if path.lower() != path else f"bad repository {path[:100]!r}"
            raise InvalidReference(f"{shown} is not an image name: {why}", hint=_HINT)
        if len(domain) + 1 + len(path) > _MAX_NAME:
            raise InvalidReference(f"{shown} is not an image name: longer than {_MAX_NAME} characters", hint=_HINT)
        if _HEX.fullmatch(text):
            raise InvalidReference(f"{shown} is not an image name: 64 hex digits would be taken for a digest", hint=_HINT)
        return cls(domain, path, tag or ("" if digest else "latest"), digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.domain}/{self.path}{tag}" + (f"@{self.digest}" if self.digest else "")

    @property
    def familiar(self) -> str:
        """The short form: ``debian:12`` for ``docker.io/library/debian:12``; the whole one where a short one would name something else."""
        full = str(self)
        for short in (self.path.removeprefix("library/"), self.path):
            # docker.io/er.io/a is no er.io/a, which is at the registry er.io; and 64 hex digits are taken for a digest.
            if _split_domain(short) == (self.domain, self.path) and not _HEX.fullmatch(short):
                return short + full.removeprefix(f"{self.domain}/{self.path}")
        return full

    @property
    def target(self) -> str:
        """What a registry is asked for: the digest where there is one, else the tag."""
        return str(self.digest) if self.digest else self.tag


def _split_domain(name: str) -> tuple[str, str]:
    """What stands before the first ``/`` is a registry if it has a dot, a port or upper case, or is ``localhost``."""
    first, slash, rest = name.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        first, rest = "docker.io", name
    if first == "index.docker.io":
        first = "docker.io"
    if first == "docker.io" and "/" not in rest:
        rest = f"library/{rest}"
    return first, rest
