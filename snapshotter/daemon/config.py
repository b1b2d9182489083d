"""The daemon's configuration: TOML, checked as a whole before anything starts."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec

from ipfs_store.errors import InvalidInput

DEFAULT_PATH = Path("/etc/ipfs-snapshotter/config.toml")
_SIZE = re.compile(r"(\d+)\s*([kmgt]?)i?b?", re.IGNORECASE)
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class NodeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[node]``: where blocks come from."""

    spec: str = "auto"
    """auto, embedded, kubo or kubo:ADDRESS."""
    path: str = ""
    """Folder of the embedded node; empty: its default."""
    peers: list[str] = []
    """Trustless gateways to ask for blocks, ``http://host:port``."""
    timeout: Seconds | None = None
    """Seconds that one block is looked for; unset: the node's default."""


class DataPlaneConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[dataplane]``: the FUSE mount."""

    mount_timeout: Seconds = 60.0
    """Seconds for a layer's table of contents to come; then it is pulled the ordinary way."""
    give_up: Seconds = 60.0
    """Seconds that a read is tried again while the node is away; then it fails with EIO."""
    abandon: Seconds = 60.0
    """Seconds without a data plane that can be started; then the mount is ended, so that readers get an error in place of waiting for ever."""
    read_ahead_kib: Annotated[int, msgspec.Meta(ge=0)] = 1024


class CacheConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[cache]``: verified files and chunks on disk."""

    max_bytes: int | str = "10GiB"
    reserve: int | str = "1GiB"
    """Of the file system, stays free."""
    scope: Literal["machine", "namespace"] = "machine"
    """Who shares files: an image that names another's contents by their digests gets them from the cache without ever having had them."""
    verify: bool = False
    """Hash every file when the data plane starts and once a week, in the background, and replace those that were damaged."""


class ContainerdConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[containerd]``: where layers that are made of snapshots go."""

    address: str = "/run/containerd/containerd.sock"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it."""

    root: str = "/var/lib/ipfs-snapshotter"
    socket: str = "/run/ipfs-snapshotter/ipfs-snapshotter.sock"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    mount_mode: Literal["auto", "native", "portable"] = "auto"
    """How layers are mounted: ``native`` by EROFS images and overlays of ours, ``portable`` by FUSE folders, ``auto`` by what works."""
    xino: Literal["on", "off"] = "on"
    """Of native roots, see overlayfs: one st_dev for all and inode numbers of 64 bits, or inode numbers that 32-bit programs can be told."""
    metrics: str = "127.0.0.1:9817"
    """Where Prometheus metrics are, over HTTP; empty: nowhere."""
    node: NodeConfig = NodeConfig()
    dataplane: DataPlaneConfig = DataPlaneConfig()
    cache: CacheConfig = CacheConfig()
    containerd: ContainerdConfig = ContainerdConfig()

    @property
    def cache_bytes(self) -> int:
        """``cache.max_bytes`` as a number."""
        return parse_size(self.cache.max_bytes)

    @property
    def cache_reserve_bytes(self) -> int:
        """``cache.reserve`` as a number."""
        return parse_size(self.cache.reserve)


DEFAULT_TOML = """\
# Configuration of ipfs-snapshotter; these are the defaults.
root = "/var/lib/ipfs-snapshotter"
socket = "/run/ipfs-snapshotter/ipfs-snapshotter.sock"
log_level = "info"                  # debug, info, warning, error
mount_mode = "auto"                 # native (EROFS and overlay), portable (FUSE folders), auto: native where the kernel can
xino = "on"                         # native roots; off: for 32-bit programs built without large files, but du -x then counts no file
metrics = "127.0.0.1:9817"          # Prometheus, http://127.0.0.1:9817/metrics; "": none

[node]
spec = "auto"                       # auto, embedded, kubo, kubo:ADDRESS
path = ""                           # folder of the embedded node; empty: its default
peers = []                          # machines to ask for blocks: "http://host:port"
# timeout = 30                      # seconds that one block is looked for

[dataplane]
mount_timeout = 60                  # seconds for a layer's table of contents; then it is pulled the ordinary way
give_up = 60                        # seconds that a read is tried again; then it fails with EIO
abandon = 60                        # seconds without a data plane that can be started; then readers get an error
read_ahead_kib = 1024

[cache]
max_bytes = "10GiB"                 # verified files and chunks on disk; what no mounted image has goes first, then what was used longest ago
reserve = "1GiB"                    # of the file system, stays free
scope = "machine"                   # who shares files; namespace: each of containerd's has its own
verify = false                      # hash every file at the start and once a week, in the background, against bits that flip

[containerd]
address = "/run/containerd/containerd.sock"   # for the diff API
"""


def load_config(path: Path | None) -> Config:
    """The configuration at ``path``; at the default place if None, where no file means defaults. Raises InvalidInput."""
    where = path or DEFAULT_PATH
    try:
        document = tomllib.loads(where.read_text())
    except FileNotFoundError:
        if path is None:
            return Config()
        raise InvalidInput(f"there is no configuration file {where}", hint="`ipfs-snapshotter config` prints one to begin with") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{where} cannot be read: {error}") from error
    _check_keys(document, Config, where, "")
    try:
        config = msgspec.convert(document, Config)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{where}: {error}") from error
    parse_size(config.cache.max_bytes)
    parse_size(config.cache.reserve)
    for name in ("root", "socket"):
        if not getattr(config, name).startswith("/"):
            raise InvalidInput(f"{where}: {name} has to be an absolute path, not {getattr(config, name)!r}")
    return config


def parse_size(value: int | str) -> int:
    """Bytes: a number, or text such as ``10GiB``; raises InvalidInput."""
    if isinstance(value, int):
        if value <= 0:
            raise InvalidInput(f"a size of {value} bytes makes no sense")
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None or not int(match[1]):
        raise InvalidInput(f"{value!r} is no size", hint='write bytes, or text such as "512MiB" or "10GiB"')
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2].lower()]


def _check_keys(document: dict[str, Any], kind: type[msgspec.Struct], where: Path, section: str) -> None:
    known = kind.__struct_fields__
    for key, value in document.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise InvalidInput(f"{where}: unknown key {section + key!r}", hint=hint)
        inner = get_type_hints(kind)[key]
        if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            _check_keys(value, inner, where, f"{section}{key}.")
