"""Every place that images can be written to, each with a way to read it again."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipfs_store.images.model import Image
from ipfs_store.images.sources import SourceOptions, open_image
from ipfs_store.images.targets import Target, TargetOptions, open_target
from tests.containerd import VERSIONS, PrivateContainerd
from tests.sources.registries import docker_registry

KINDS = ("oci", "oci-archive", "docker-archive", "registry", *(f"containerd-{version}" for version in VERSIONS))
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Place:
    """Somewhere to write images to; ``text(name)`` is what the command line takes for it."""

    kind: str
    at: str
    scratch: Path
    address: str | None = None
    namespace: str | None = None

    @property
    def many(self) -> bool:
        """Whether it holds several images side by side."""
        return self.kind not in ("oci-archive", "docker-archive")

    def text(self, name: str = "") -> str:
        """``name``: a repository and tag, ``app:1``."""
        match self.kind:
            case "oci" | "oci-archive" | "docker-archive":
                return f"{self.kind}:{self.at}" + (f":{name}" if name else "")
            case "registry":
                return f"docker://{self.at}/{name or 'app:1'}"
            case _:
                return f"containerd:{self.full(name or 'app:1')}"

    def full(self, name: str) -> str:
        """What an image of that name is called there."""
        return f"{self.at}/{name}" if self.kind == "registry" else f"example.com/{name}" if self.kind.startswith("containerd") else name

    @asynccontextmanager
    async def target(self, name: str = "", **options: Any) -> AsyncIterator[Target]:
        given = {"folder": self.scratch, "address": self.address, "namespace": self.namespace, **options}
        async with open_target(self.text(name), TargetOptions(**given)) as target:
            yield target

    @asynccontextmanager
    async def image(self, name: str = "") -> AsyncIterator[Image]:
        """Raises ImageNotFound where there is none."""
        options = SourceOptions(folder=self.scratch, address=self.address, namespace=self.namespace)
        async with open_image(self.text(name), options=options) as image:
            yield image


@contextmanager
def places(folder: Path) -> Iterator[dict[str, Place]]:
    """All of them, made when they are asked for, below ``folder``; only registries and containerds are started, once."""
    made = _Places(folder)
    try:
        yield made
    finally:
        made.close()


class _Places(dict[str, Place]):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._running: dict[str, Any] = {}
        self._started: list[Any] = []
        self._roots: list[Path] = []

    def __missing__(self, kind: str) -> Place:
        """A new, empty one of that kind each time."""
        number = next(_numbers)
        scratch = self._folder / f"scratch{number}"
        scratch.mkdir(parents=True)
        match kind:
            case "oci":
                return Place(kind, str(self._folder / f"layout{number}"), scratch)
            case "oci-archive" | "docker-archive":
                return Place(kind, str(self._folder / f"image{number}.tar"), scratch)
            case "registry":
                if kind not in self._running:
                    context = docker_registry(self._folder / "registry")
                    self._running[kind] = context.__enter__()
                    self._started.append(context)
                return Place(kind, f"{self._running[kind]}/n{number}", scratch)
        if kind not in self._running:
            self._roots.append(Path(tempfile.mkdtemp(prefix="ctrd-", dir="/tmp")))
            containerd = PrivateContainerd(self._roots[-1], kind.removeprefix("containerd-"), {})
            self._running[kind] = containerd.__enter__()
            self._started.append(containerd)
        return Place(kind, kind, scratch, str(self._running[kind].address), f"test{number}")

    def running(self, kind: str) -> Any:
        """The server behind a place."""
        return self._running[kind]

    def close(self) -> None:
        for context in reversed(self._started):
            context.__exit__(None, None, None)
        for root in self._roots:
            shutil.rmtree(root)
