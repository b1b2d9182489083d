"""Whatever dies, readers go on: the real holder and the real data plane, killed."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest

from snapshotter.dataplane.client import DataPlane, DataPlaneGone, Launch
from snapshotter.holder.table import mounts_at
from snapshotter.mounts.interface import LayerSource
from tests.dataplane.faults import Faults
from tests.dataplane.synthetic import of_files
from tests.patience import PATIENCE, until
from tests.requirements import require_fuse

pytestmark = [pytest.mark.root, pytest.mark.fuse]

REPOSITORY = Path(__file__).parents[2]
ABANDON = 5.0
"""Seconds; a new data plane has half of them to say something, and on a slow machine so much takes a shell that says nothing."""
FILES = {"big": os.urandom(3 << 20), **{f"d{number % 5}/f{number}": os.urandom(5_000 + number) for number in range(50)}}


@dataclass
class Served:
    """A data plane on a folder of synthetic layers."""

    folder: Path
    planes: list[DataPlane] = field(default_factory=list)

    def launch(self) -> Launch:
        return Launch(
            mountpoint=self.folder / "layers",
            control=self.folder / "dataplane.sock",
            cache=self.folder / "cache",
            log=self.folder / "log",
            program=(sys.executable, "-m", "tests.dataplane.served", str(self.folder)),
        )

    def plane(self, kept: int | None = None, **changes: object) -> DataPlane:
        made = DataPlane(replace(self.launch(), **changes), kept=kept)  # type: ignore[arg-type]
        self.planes.append(made)
        return made

    def faults(self, *words: str) -> None:
        Faults(self.folder).set(*words)

    def reads(self) -> int:
        path = self.folder / "reads"
        return path.read_text().count("\n") if path.exists() else 0

    def log(self) -> str:
        return (self.folder / "log").read_text()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    require_fuse()
    monkeypatch.chdir(REPOSITORY)  # where the holder's `-m tests...` is
    folder = Path(tempfile.mkdtemp(prefix="handover-", dir="/var/tmp"))
    made = Served(folder)
    try:
        blob, toc = of_files(FILES)
        (folder / "one.blob").write_bytes(blob)
        (folder / "one.toc").write_bytes(msgspec.msgpack.encode(toc))
        yield made
    finally:
        for plane in made.planes:
            plane.stop()
        left = mounts_at(folder / "layers")
        shutil.rmtree(folder, ignore_errors=True)
        assert not left


def kill(*processes: int) -> None:
    """And wait for their end."""
    handles = [os.pidfd_open(process) for process in processes]
    for handle in handles:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    for handle in handles:
        with open(handle, "rb"):
            assert select.select([handle], [], [], PATIENCE)[0]


def drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("3")


def every_file(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


SOURCE = LayerSource("one", "sha256:one")


def test_a_reader_waiting_in_a_killed_data_plane_gets_its_bytes(served: Served) -> None:
    plane = served.plane()
    assert plane.start()
    root = plane.mount(1, SOURCE)
    with open(root / "big", "rb", buffering=0) as held, open(root / "d1/f1", "rb") as unread, contextlib.ExitStack() as stack:
        assert held.read(10) == FILES["big"][:10]
        inode = os.stat(root / "d2/f2").st_ino
        served.faults("hold")
        before = served.reads()
        got: list[bytes] = []
        waiting = threading.Thread(target=lambda: got.append((root / "d3/f3").read_bytes()))
        waiting.start()
        stack.callback(waiting.join)
        until(lambda: served.reads() > before, "the read never came to the data plane")
        served.faults("ok")
        kill(plane.status_of_holder()["worker"])
        waiting.join()
        assert got == [FILES["d3/f3"]]
        assert held.read() is not None
        held.seek(0)
        drop_caches()
        assert b"".join(iter(lambda: held.read(1 << 20), b"")) == FILES["big"]
        assert unread.read() == FILES["d1/f1"]
        assert os.stat(root / "d2/f2").st_ino == inode
    assert every_file(root) == FILES


def test_layers_come_back_by_themselves_and_those_that_are_unmounted_do_not(served: Served) -> None:
    plane = served.plane()
    plane.start()
    root = plane.mount(1, SOURCE)
    plane.mount(2, SOURCE)
    plane.unmount(2)
    kill(plane.status_of_holder()["worker"])
    assert every_file(root) == FILES
    assert not (root.parent / "2").exists()


def test_a_layer_that_cannot_be_reopened_yet_is_waited_for(served: Served) -> None:
    plane = served.plane()
    plane.start()
    root = plane.mount(1, SOURCE)
    (served.folder / "one.toc").rename(served.folder / "away")
    kill(plane.status_of_holder()["worker"])
    killed = subprocess.Popen(["cat", root / "d4/f4"])
    waiting = subprocess.Popen(["cat", root / "d1/f1"], stdout=subprocess.PIPE)
    until(lambda: "was mounted and cannot be opened now" in served.log(), "nobody says that the layer is not there")
    # Nobody is kept alive by waiting for us.
    killed.kill()
    assert killed.wait(PATIENCE) == -signal.SIGKILL
    (served.folder / "away").rename(served.folder / "one.toc")
    assert waiting.communicate()[0] == FILES["d1/f1"]


def test_without_a_holder_files_are_served_on_and_another_takes_over(served: Served) -> None:
    plane = served.plane()
    plane.start()
    root = plane.mount(1, SOURCE)
    with open(root / "big", "rb", buffering=0) as held:
        kill(plane.holder_pid())
        drop_caches()
        assert every_file(root) == FILES
        assert not plane.start()
        kill(plane.status_of_holder()["worker"])
        drop_caches()
        assert every_file(root) == FILES
        assert held.read(10) == FILES["big"][:10]


def test_when_all_is_lost_the_next_start_is_clean(served: Served) -> None:
    plane = served.plane()
    plane.start()
    root = plane.mount(1, SOURCE)
    kill(plane.holder_pid(), plane.status_of_holder()["worker"])
    with pytest.raises(OSError, match="not connected"):
        os.stat(root)
    assert plane.start()
    assert every_file(root) == FILES  # the registry has it
    assert len(mounts_at(served.folder / "layers")) == 1


READER = """
import pathlib, sys
with open(sys.argv[1] + "/big", "rb", buffering=0) as held:
    begin = held.read(10)
    print("open", flush=True)
    sys.stdin.read()
    files = {str(path.relative_to(sys.argv[1])): path.read_bytes().hex() for path in pathlib.Path(sys.argv[1]).rglob("*") if path.is_file()}
    print(len(files), files["big"][:20] == begin.hex(), held.read(10).hex() == files["big"][20:40], flush=True)
"""


def test_a_kept_descriptor_outlives_them_all(served: Served) -> None:
    plane = served.plane()
    plane.start()
    root = plane.mount(1, SOURCE)
    kept = plane.share()
    # In a process of its own: one that has files of the mount open cannot be the one that starts what serves them.
    with subprocess.Popen([sys.executable, "-c", READER, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None and reader.stdin is not None
        assert reader.stdout.readline() == "open\n"
        kill(plane.holder_pid(), plane.status_of_holder()["worker"])
        drop_caches()
        reader.stdin.close()
        assert not served.plane(kept=kept).start()
        assert reader.stdout.readline() == f"{len(FILES)} True True\n"
    assert every_file(root) == FILES


def test_a_descriptor_of_another_connection_is_not_gone_on_with(served: Served) -> None:
    plane = served.plane()
    plane.start()
    kept = plane.share()
    plane.stop()
    again = served.plane(kept=kept)
    assert again.start()
    assert every_file(again.mount(1, SOURCE)) == FILES


def test_other_settings_take_over_while_files_are_read(served: Served) -> None:
    plane = served.plane()
    plane.start()
    root = plane.mount(1, SOURCE)
    before = plane.status_of_holder()["worker"]
    with open(root / "big", "rb", buffering=0) as held:
        changed = served.plane(code="2.0")
        assert not changed.start()
        after = changed.status_of_holder()
        assert after["worker"] != before and "--code=2.0" in after["command"]
        assert held.read(10) == FILES["big"][:10]
    assert every_file(root) == FILES
    assert not changed.start()
    assert changed.status_of_holder()["worker"] == after["worker"]


def test_a_holder_with_other_code_takes_over_from_the_one_before(served: Served) -> None:
    plane = served.plane()
    plane.start()
    root = plane.mount(1, SOURCE)
    before, holder = plane.status_of_holder(), plane.holder_pid()
    with open(root / "big", "rb", buffering=0) as held:
        upgraded = served.plane(holder_code="2.0")
        assert not upgraded.start()
        after = upgraded.status_of_holder()
        assert (after["code"], after["worker"]) == ("2.0", before["worker"])
        assert upgraded.holder_pid() not in (0, holder)
        kill(after["worker"])
        drop_caches()
        assert held.read(10) == FILES["big"][:10]
    assert every_file(root) == FILES
    assert not upgraded.start()
    assert upgraded.holder_pid() == after["pid"]


def test_a_replacement_that_does_not_start_replaces_nothing(served: Served) -> None:
    plane = served.plane()
    plane.start()
    root = plane.mount(1, SOURCE)
    before = plane.status_of_holder()["worker"]
    served.plane(program=("/bin/false",)).start()
    assert plane.status_of_holder()["worker"] == before
    assert every_file(root) == FILES
    kill(before)  # and the next is one of those that work
    assert every_file(root) == FILES


def test_readers_get_an_error_when_no_data_plane_can_be_started(served: Served) -> None:
    served.folder.joinpath("program").write_text(f'#!/bin/sh\ncd {REPOSITORY}\nexec {" ".join(served.launch().program)} "$@"\n')
    served.folder.joinpath("program").chmod(0o755)
    plane = served.plane(program=(str(served.folder / "program"),), abandon=ABANDON)
    plane.start()
    root = plane.mount(1, SOURCE)
    served.folder.joinpath("program").write_text("#!/bin/sh\nexit 7\n")
    kill(plane.status_of_holder()["worker"])
    with pytest.raises(OSError, match=r"not connected|connection abort|Input/output|No such"):
        (root / "d1/f1").read_bytes()
    assert plane.wait_gone(PATIENCE)
    assert f"no data plane could be started for {ABANDON:g} s (exit status 7)" in served.log()
    assert not mounts_at(served.folder / "layers")


def test_a_first_data_plane_that_does_not_start_leaves_nothing_and_says_why(served: Served) -> None:
    plane = served.plane(program=("/bin/false",))
    with pytest.raises(DataPlaneGone, match="exit status 1"):
        plane.start()
    assert not mounts_at(served.folder / "layers")


@pytest.mark.parametrize("packet", ["no message", '{"say": "prepared", "reply": "zz"}', '{"say": "prepared", "reply": "00"}', "[]"])
def test_a_data_plane_that_talks_nonsense_costs_itself_and_not_the_holder(served: Served, packet: str) -> None:
    script = f"import os, sys, time; os.write(int(next(a for a in sys.argv if a.startswith('--holder-fd='))[12:]), {packet.encode()!r}); time.sleep(1000)"
    plane = served.plane()
    plane.start()
    root = plane.mount(1, SOURCE)
    served.plane(program=(sys.executable, "-c", script)).start()
    assert every_file(root) == FILES
    assert "Traceback" not in served.log()


def test_without_resend_a_waiting_reader_gets_bytes_or_one_error(served: Served) -> None:
    plane = served.plane(resend=False)
    plane.start()
    root = plane.mount(1, SOURCE)
    assert not plane.status_of_holder()["resend"]
    served.faults("hold")
    before = served.reads()
    got: list[bytes | OSError] = []

    def read() -> None:
        try:
            got.append((root / "d3/f3").read_bytes())
        except OSError as error:
            got.append(error)

    waiting = threading.Thread(target=read)
    waiting.start()
    until(lambda: served.reads() > before, "the read never came to the data plane")
    served.faults("ok")
    kill(plane.status_of_holder()["worker"])
    waiting.join(PATIENCE)
    assert not waiting.is_alive() and (isinstance(got[0], OSError) or got[0] == FILES["d3/f3"])
    assert every_file(root) == FILES
    kill(plane.holder_pid())
    plane.start()
    kill(plane.status_of_holder()["worker"])
    drop_caches()
    assert every_file(root) == FILES
