"""Extended attributes of a TOC's entries: from their JSON to values, without room for a stranger's millions of them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ipfs_store.errors import InvalidLayer
from ipfs_store.formats.limits import MAX_NAME, MAX_XATTRS, MAX_XATTRS_OF_FILE
from ipfs_store.formats.toc import NO_XATTRS

_decoder = msgspec.json.Decoder(dict[str, bytes] | None)


class Xattrs:
    """Decodes those of one TOC. Equal ones, such as SELinux labels of thousands of files, are one object."""

    def __init__(self) -> None:
        self._known: dict[bytes, Mapping[str, bytes]] = {}
        self._size = 0

    def decode(self, raw: msgspec.Raw | Mapping[str, bytes], path: str) -> Mapping[str, bytes]:
        """``raw`` is a JSON object of base64 values, or what was decoded before; raises InvalidLayer."""
        if not isinstance(raw, msgspec.Raw):
            return _checked(raw, path)
        if len(raw) > MAX_XATTRS_OF_FILE:
            raise InvalidLayer(f"{path!r} has {len(raw)} bytes of extended attributes in the TOC, over the limit of {MAX_XATTRS_OF_FILE}")
        text = bytes(raw)
        known = self._known.get(text)
        if known is None:
            self._size += len(text)
            if self._size > MAX_XATTRS:
                raise InvalidLayer(f"the TOC has over {MAX_XATTRS} bytes of different extended attributes")
            try:
                known = _checked(_decoder.decode(text) or NO_XATTRS, path)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise InvalidLayer(f"{path!r} has extended attributes in the TOC that are none: {error}") from error
            self._known[text] = known
        return known


def _checked(found: Mapping[str, bytes], path: str) -> Mapping[str, bytes]:
    for name in found:
        try:
            length = len(name.encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError:
            length = 0
        if not 0 < length <= MAX_NAME or "\0" in name:
            raise InvalidLayer(f"{path!r} has an extended attribute with a name that none can have: {name[:100]!r}")
    return found
