"""Manifests that refer to an image: as cosign, notation and SBOM tools attach them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.sources.made import INDEX, MANIFEST, described, encode

EMPTY = b"{}"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"


class Attached:
    """A manifest with a ``subject`` that carries ``payload``."""

    def __init__(
        self, subject: bytes, payload: bytes, artifact_type: str, *, subject_type: str = MANIFEST, with_subject: bool = True
    ) -> None:
        self.payload = payload
        self.artifact_type = artifact_type
        # Notation and ORAS give the empty config types of their own: the same bytes under several.
        config_type = EMPTY_TYPE if with_subject else artifact_type
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": artifact_type,
            "config": described(config_type, EMPTY),
            "layers": [described("application/octet-stream", payload)],
            "subject": described(subject_type, subject),
        }
        if not with_subject:
            del document["subject"], document["artifactType"]
        self.manifest = encode(document)

    @property
    def blobs(self) -> list[bytes]:
        return [self.manifest, EMPTY, self.payload]

    def descriptor(self, **more: Any) -> dict[str, Any]:
        return described(MANIFEST, self.manifest, artifactType=self.artifact_type, **more)


def listing(attached: Sequence[Attached]) -> bytes:
    """The index that a registry makes of them."""
    return encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": [item.descriptor() for item in attached]})
