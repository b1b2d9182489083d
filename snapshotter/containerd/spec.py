"""The OCI runtime specification of a container, made from an image's config: what ``ctr run`` gives a container unless told otherwise."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ipfs_store.errors import InvalidInput
from ipfs_store.oci import Config

_CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP",
    "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
)  # fmt: skip
_MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
    "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
)  # fmt: skip
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MOUNTS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),
    ("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    ("/run", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
)


@dataclass(frozen=True, slots=True)
class User:
    """Who a container's process is."""

    uid: int = 0
    gid: int = 0
    more_gids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class BindMount:
    """A path of the machine inside a container."""

    source: str
    target: str
    read_only: bool = False

    @classmethod
    def parse(cls, text: str) -> BindMount:
        """``type=bind,src=PATH,dst=PATH[,options=rbind:ro]`` as ctr writes it, or ``PATH:PATH[:ro]``; raises InvalidInput."""
        hint = "a mount looks like type=bind,src=/srv,dst=/data,options=rbind:ro or /srv:/data:ro"
        if "=" not in text:
            parts = text.split(":")
            if len(parts) not in (2, 3) or (len(parts) == 3 and parts[2] not in ("ro", "rw")):
                raise InvalidInput(f"{text[:200]!r} is no mount", hint=hint)
            mount = cls(parts[0], parts[1], parts[2:] == ["ro"])
        else:
            values = dict(part.partition("=")[::2] for part in text.split(","))
            source, target = values.get("src") or values.get("source", ""), values.get("dst") or values.get("destination", "")
            unknown = values.keys() - {"type", "src", "source", "dst", "destination", "options"}
            if unknown or values.get("type", "bind") != "bind":
                raise InvalidInput(f"{text[:200]!r}: only bind mounts with src, dst and options are known", hint=hint)
            mount = cls(source, target, "ro" in values.get("options", "").split(":"))
        if not mount.source.startswith("/") or not mount.target.startswith("/"):
            raise InvalidInput(f"{text[:200]!r}: both paths of a mount must be absolute", hint=hint)
        return mount


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller wants otherwise than the image."""

    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    """``KEY=VALUE``; these win over the image's."""
    working_directory: str = ""
    terminal: bool = False
    host_network: bool = False
    read_only: bool = False
    mounts: tuple[BindMount, ...] = ()


def image_settings(config: Config) -> Mapping[str, Any]:
    """The ``config`` part of an image's config, empty if it has none."""
    settings = config.document.get("config")
    return settings if isinstance(settings, dict) else {}


def spec(name: str, namespace: str, config: Config, user: User, options: Options) -> dict[str, Any]:
    """The runtime specification for container ``name``; raises InvalidInput if there is nothing to run."""
    settings = image_settings(config)
    command = [*_strings(settings, "Entrypoint"), *(options.command or _strings(settings, "Cmd"))]
    if not command:
        raise InvalidInput("the image says nothing of what to run", hint="name a command: ipfs-store run IMAGE COMMAND...")
    namespaces = ["pid", "ipc", "uts", "mount", *([] if options.host_network else ["network"])]
    process = {
        "terminal": options.terminal,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.more_gids or (user.gid,))},
        "args": command,
        "env": _environment(_strings(settings, "Env"), options),
        "cwd": options.working_directory or str(settings.get("WorkingDir") or "/"),
        "capabilities": {kind: list(_CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": True,
    }
    return {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": "rootfs", "readonly": options.read_only},
        "hostname": "" if options.host_network else name[:63],
        "mounts": _mounts(options),
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},  # runc allows the usual ones beside
            "cgroupsPath": f"/{namespace}/{name}",
            "namespaces": [{"type": kind} for kind in namespaces],
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READ_ONLY),
        },
    }


def parse_user(text: str, passwd: str, group: str) -> User:
    """The user that an image's config names (``uid``, ``name``, each with ``:gid`` or ``:group``), by the image's own files.

    Raises InvalidInput for a name that the files do not have.
    """
    who, _, of = text.partition(":")
    uid, gid, name = 0, 0, ""
    users = [line.split(":") for line in passwd.splitlines() if line.count(":") >= 3]
    groups = [line.split(":") for line in group.splitlines() if line.count(":") >= 3]
    entry = (
        next((item for item in users if who in (item[0], item[2])), None) if who else next((item for item in users if item[2] == "0"), None)
    )
    if entry is not None and entry[2].isdigit() and entry[3].isdigit():
        name, uid, gid = entry[0], int(entry[2]), int(entry[3])
    elif _is_id(who):
        uid = int(who)
    elif who:
        raise InvalidInput(f"the image runs as user {who!r}, whom its /etc/passwd does not have")
    if of:
        found = next((item[2] for item in groups if of in (item[0], item[2])), of)
        if not _is_id(found):
            raise InvalidInput(f"the image runs as group {of!r}, which its /etc/group does not have")
        return User(uid, int(found), (int(found),))
    more = [int(item[2]) for item in groups if name and _is_id(item[2]) and name in item[3].split(",") and int(item[2]) != gid]
    return User(uid, gid, (gid, *more))


def _is_id(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]{1,10}", text)) and int(text) < 1 << 32


def _environment(image: Sequence[str], options: Options) -> list[str]:
    values = dict(
        entry.partition("=")[::2] for entry in (_PATH, *(("TERM=xterm",) if options.terminal else ()), *image, *options.environment)
    )
    return [f"{key}={value}" for key, value in values.items()]


def _mounts(options: Options) -> list[dict[str, Any]]:
    mounts = [{"destination": target, "type": kind, "source": source, "options": list(flags)} for target, kind, source, flags in _MOUNTS]
    binds = list(options.mounts)
    if options.host_network:
        binds += [BindMount(path, path, read_only=True) for path in ("/etc/hosts", "/etc/resolv.conf")]
    for bind in binds:
        flags = ["rbind", "ro" if bind.read_only else "rw"]
        mounts.append({"destination": bind.target, "type": "bind", "source": bind.source, "options": flags})
    return mounts


def _strings(settings: Mapping[str, Any], key: str) -> list[str]:
    value = settings.get(key)
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
