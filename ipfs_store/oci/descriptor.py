"""OCI descriptors (image-spec, descriptor.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from ipfs_store.errors import InvalidDescriptor, InvalidDigest
from ipfs_store.oci.digest import Digest

_NO_ANNOTATIONS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Platform:
    """What a manifest of an index runs on (image-spec, image-index.md); prints as ``linux/arm64/v8``."""

    os: str
    architecture: str
    variant: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)
    """Fields we do not interpret (``os.version``, ``os.features``), kept so that a rewritten index loses nothing."""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        value: dict[str, Any] = {"architecture": self.architecture, "os": self.os, **self.extra}
        if self.variant:
            value["variant"] = self.variant
        return value


_SUBJECT = "vnd.docker.reference.digest"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A typed, sized, digested reference to a blob, with where to get it (``urls``) and what is said of it."""

    media_type: str
    digest: Digest
    size: int
    urls: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=lambda: _NO_ANNOTATIONS, hash=False)
    platform: Platform | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Fields we do not interpret (``data``, ``artifactType``)."""

    @classmethod
    def from_json(cls, value: object, *, where: str = "descriptor") -> Descriptor:
        """Validate decoded JSON; raises InvalidDescriptor, whose message starts with ``where``."""
        if not isinstance(value, dict):
            raise InvalidDescriptor(f"{where}: expected a JSON object, found {type(value).__name__}")
        media_type, size = value.get("mediaType"), value.get("size")
        if not isinstance(media_type, str) or not media_type:
            raise InvalidDescriptor(f"{where}: no mediaType")
        if not isinstance(value.get("digest"), str):
            raise InvalidDescriptor(f"{where}: no digest")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidDescriptor(f"{where}: size is {size!r}, not a number of bytes")
        try:
            digest = Digest.parse(value["digest"])
        except InvalidDigest as error:
            raise InvalidDescriptor(f"{where}: {error}") from error
        urls = value.get("urls") or []
        if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
            raise InvalidDescriptor(f"{where}: urls is not a list of strings")
        annotations = value.get("annotations") or {}
        if not isinstance(annotations, dict) or not all(isinstance(v, str) for v in annotations.values()):
            raise InvalidDescriptor(f"{where}: annotations is not a map of strings")
        known = {"mediaType", "digest", "size", "urls", "annotations", "platform"}
        return cls(
            media_type,
            digest,
            size,
            tuple(urls),
            MappingProxyType(dict(annotations)),
            _platform(value.get("platform"), where),
            {key: item for key, item in value.items() if key not in known},
        )

    @property
    def attests(self) -> Digest | None:
        """The manifest that this one, of an index, is an attestation of, as BuildKit says it by annotations; None for any other."""
        if self.annotations.get("vnd.docker.reference.type") != "attestation-manifest":
            return None
        try:
            return Digest.parse(self.annotations.get(_SUBJECT, ""))
        except InvalidDigest:
            return None

    def attesting(self, rewritten: Mapping[Digest, Digest]) -> Descriptor:
        """The same, but attesting what the manifest became; ``rewritten``: digests before and after. Itself where it attests none of these."""
        after = rewritten.get(self.attests) if self.attests else None
        return self if after is None else replace(self, annotations={**self.annotations, _SUBJECT: str(after)})

    def to_json(self) -> dict[str, Any]:
        """The JSON object, fields in the order that Go's image-spec writes them (mediaType, digest, size, urls, ...)."""
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.urls:
            value["urls"] = list(self.urls)
        if self.annotations:
            value["annotations"] = dict(sorted(self.annotations.items()))
        value.update(self.extra)
        if self.platform is not None:
            value["platform"] = self.platform.to_json()
        return value


def _platform(value: object, where: str) -> Platform | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidDescriptor(f"{where}: platform is not an object")
    parts = [value.get(key, "") for key in ("os", "architecture", "variant")]
    if not all(isinstance(part, str) for part in parts):
        raise InvalidDescriptor(f"{where}: platform has a field that is no string")
    extra = {key: item for key, item in value.items() if key not in ("os", "architecture", "variant")}
    return Platform(parts[0], parts[1], parts[2], extra)
