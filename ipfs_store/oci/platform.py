"""Platforms as people write them (``linux/arm64/v8``), and which image runs where, by the rules that containerd applies."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ipfs_store.errors import InvalidReference
from ipfs_store.oci.descriptor import Platform

_SYSTEMS = frozenset(
    {"aix", "android", "darwin", "dragonfly", "freebsd", "illumos", "linux", "netbsd", "openbsd", "plan9", "solaris", "windows"}
)
_ARCHITECTURES = frozenset(
    {"386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64", "s390x", "wasm"}
)
# Names that kernels, Debian and people use -> (architecture, variant or None: keep what was given).
_ALIASES: dict[str, tuple[str, str | None]] = {
    "i386": ("386", None),
    "i686": ("386", None),
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v8"),
    "loongarch64": ("loong64", None),
}

_VARIANT = re.compile(r"v[0-9]{1,2}")


def parse_platform(text: str) -> Platform:
    """``os/arch[/variant]``, or the system or the architecture alone (the other is this machine's); raises InvalidReference."""
    hint = "a platform looks like linux/amd64 or linux/arm64/v8"
    parts = text.strip().lower().split("/")
    if not 1 <= len(parts) <= 3 or not all(part and part.replace("_", "").replace("-", "").replace(".", "").isalnum() for part in parts):
        raise InvalidReference(f"{text[:100]!r} is not a platform", hint=hint)
    if len(parts) == 1:
        here = default_platform()
        if _system(parts[0]) in _SYSTEMS:
            return replace(here, os=_system(parts[0]))
        parsed = normalise_platform(Platform(here.os, parts[0]))
        if parsed.architecture not in _ARCHITECTURES:
            raise InvalidReference(f"{text[:100]!r} is neither an operating system nor an architecture", hint=hint)
        return parsed
    return normalise_platform(Platform(parts[0], parts[1], parts[2] if len(parts) == 3 else ""))


def normalise_platform(platform: Platform) -> Platform:
    """The one form in which platforms are compared: ``x86_64`` is amd64, arm without a variant is v7, arm64/v8 is arm64."""
    architecture, variant = platform.architecture.lower(), platform.variant.lower()
    if architecture in _ALIASES:
        architecture, implied = _ALIASES[architecture]
        variant = variant if implied is None else implied
    if variant.isdigit():
        variant = f"v{variant}"
    if architecture == "arm" and not variant:
        variant = "v7"
    elif (architecture, variant) in (("arm64", "v8"), ("amd64", "v1")):
        variant = ""
    return replace(platform, os=_system(platform.os.lower()), architecture=architecture, variant=variant)


def default_platform() -> Platform:
    """This machine's."""
    machine = os.uname()
    return normalise_platform(Platform(machine.sysname.lower(), machine.machine))


def runs_on(wanted: Platform) -> list[Platform]:
    """What ``wanted`` can run, best first: itself, older variants, then the 32-bit architecture that its processors also know."""
    first = normalise_platform(wanted)
    vector = [first]
    # Two digits: every older variant is listed, and a stranger's index may say v600000000000.
    number = int(first.variant[1:]) if _VARIANT.fullmatch(first.variant) else 0
    match first.architecture:
        case "amd64":
            vector += [normalise_platform(replace(first, variant=f"v{older}")) for older in range(number - 1, 0, -1)]
            vector.append(replace(first, architecture="386", variant=""))
        case "arm":
            vector += [replace(first, variant=f"v{older}") for older in range(number - 1, 4, -1)]
        case "arm64":
            vector += [normalise_platform(replace(first, variant=f"v{older}")) for older in range(number - 1, 7, -1)]
            vector += runs_on(replace(first, architecture="arm", variant="v8"))
    return vector


def same_platform(one: Platform, other: Platform) -> bool:
    """Whether both name the same platform."""
    return normalise_platform(one) == normalise_platform(other)


def best_match(wanted: Platform, offered: Sequence[Platform | None]) -> int | None:
    """The position in ``offered`` of what runs best on ``wanted``; None where nothing does. An unknown platform (None) never matches."""
    known = [None if platform is None else normalise_platform(platform) for platform in offered]
    for candidate in runs_on(wanted):
        if candidate in known:
            return known.index(candidate)
    return None


def select(wanted: Iterable[Platform], offered: Sequence[Platform | None]) -> list[int]:
    """Positions of the best match for each wanted platform, each once, in the order offered; what has no match is left out."""
    found = {best_match(platform, offered) for platform in wanted}
    return sorted(position for position in found if position is not None)


def _system(name: str) -> str:
    return {"macos": "darwin", "": os.uname().sysname.lower()}.get(name, name)
