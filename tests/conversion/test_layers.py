"""One layer rewritten: where it lies meanwhile, and where it comes to lie."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from ipfs_store.errors import StorageFailed
from ipfs_store.formats.options import WriteOptions
from ipfs_store.images.conversion import layer_converter, layers
from ipfs_store.images.conversion.record import read_record
from ipfs_store.images.sources.incoming import Whole
from ipfs_store.images.targets import TargetOptions, open_target
from ipfs_store.oci import Descriptor, Digest
from ipfs_store.oci.media_types import OCI_LAYER
from tests.sources.made import tar


@pytest.fixture
def layer(tmp_path: Path) -> tuple[Descriptor, Path]:
    data = tar({"hello": b"hello" * 1000})
    path = tmp_path / "layer.tar"
    path.write_bytes(data)
    return Descriptor(OCI_LAYER, Digest.of(data), len(data)), path


async def test_a_layer_on_its_way_has_no_name_and_is_linked_where_it_stays(layer: tuple[Descriptor, Path], scratch: Path) -> None:
    """So that a kill leaves nothing, and a layout costs no copy."""
    descriptor, path = layer
    async with open_target(f"oci:{scratch / 'layout'}:x", TargetOptions(folder=scratch)) as target:
        before = list(target.folder.iterdir())
        async with layer_converter(WriteOptions(), folder=target.folder)(descriptor, Whole(path, descriptor.size)) as converted:
            assert converted is not None and converted.path is not None
            assert list(target.folder.iterdir()) == before == []
            new = Descriptor(converted.media_type, converted.digest, converted.size)
            made = converted.path.stat()
            await target.put_blob(new, converted.path, diff_id=converted.diff_id, given=True)
            kept = (target.folder / new.digest.hex).stat()
            assert (kept.st_ino, kept.st_size) == (made.st_ino, new.size)
            assert kept.st_mode & 0o777 == 0o644


async def test_a_full_disk_is_named(layer: tuple[Descriptor, Path], scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, file: BinaryIO, folder: Path, options: WriteOptions, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(layers, "write_layer_to", full)
    descriptor, path = layer
    with pytest.raises(StorageFailed, match=f"{scratch}.*No space left on device"):
        async with layer_converter(WriteOptions(), folder=scratch)(descriptor, Whole(path, descriptor.size)):
            pass
    assert os.listdir(scratch) == []


@pytest.mark.parametrize("separator", ["\n", "", " \n\n"])
def test_records_of_ctr_remote(separator: str, tmp_path: Path) -> None:
    record = tmp_path / "record"
    entries = [{"path": name, "manifestDigest": "sha256:0", "layerIndex": 1} for name in ("b", "a/c", "b")]
    record.write_text(separator.join(map(json.dumps, entries)))
    assert read_record(record) == ("b", "a/c")
