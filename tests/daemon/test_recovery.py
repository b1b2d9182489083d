"""What is left after the worst, and how it comes back: everything killed, a reboot, a descriptor that systemd kept, a clean stop."""

from __future__ import annotations

import array
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containerd import PrivateContainerd
from tests.integration.stage import BIN, ENVIRONMENT, MODES, Stage, docker_archive, stage, vector_layers
from tests.patience import PATIENCE, until
from tests.requirements import require_fuse

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.containerd]

RUN = ("run", "--rm", "--snapshotter", "ipfs", "lazy")


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    require_fuse()
    made = Path(tempfile.mkdtemp(prefix="recovery-", dir="/var/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module", params=MODES)
def on_stage(request: pytest.FixtureRequest, root: Path) -> Iterator[Stage]:
    with stage(root / request.param, request.param) as made:
        yield made


@pytest.fixture(scope="module")
def containerd(on_stage: Stage) -> Iterator[PrivateContainerd]:
    pushed = on_stage.push(docker_archive(on_stage.root / "image.tar", vector_layers(on_stage.root), Cmd=["cat", "/etc/hostname"]))
    on_stage.serve()
    on_stage.start_daemon()
    folder = Path(tempfile.mkdtemp(prefix="ctrd-", dir="/tmp"))
    try:
        with PrivateContainerd(folder, "2.4", {"ipfs": on_stage.socket}) as started:
            started.wait_for_snapshotter("ipfs")
            on_stage.rpull(started, pushed["cid"], "--name", "lazy")
            yield started
            if not on_stage.status()["pid"]:
                on_stage.start_daemon()
            started.run("image", "rm", "--sync", "lazy")
    finally:
        shutil.rmtree(folder)


def processes(on_stage: Stage) -> list[int]:
    """Ours that run for this stage."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if f"{on_stage.root}/snapshotter".encode() in command or os.fsencode(on_stage.config) in command:
            found.append(int(entry.name))
    return found


def kill_all(on_stage: Stage) -> list[int]:
    """Whatever of ours runs; who it was."""
    found = processes(on_stage)
    for process in found:
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
            os.kill(process, signal.SIGKILL)
    return found


def kill_everything(on_stage: Stage) -> None:
    """Until nothing is left: who was killed last may have started another meanwhile."""
    kill_all(on_stage)
    on_stage.end_daemon(signal.SIGKILL)
    until(lambda: not kill_all(on_stage))


def mounts_of(on_stage: Stage) -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {on_stage.root}/" in line]


def loops_of(on_stage: Stage) -> list[str]:
    """Loop devices on our files."""
    out = subprocess.run(
        ["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"], capture_output=True, text=True, check=True
    ).stdout
    return [line for line in out.splitlines() if f"{on_stage.root}/" in line]


def start_again(on_stage: Stage, containerd: PrivateContainerd) -> None:
    on_stage.start_daemon()
    containerd.wait_for_snapshotter("ipfs")


@pytest.fixture(autouse=True)
def running(on_stage: Stage, containerd: PrivateContainerd) -> None:
    """Whatever the test before did: the daemon runs."""
    if not on_stage.status()["pid"]:
        start_again(on_stage, containerd)


def test_after_everything_was_killed_the_next_start_is_clean_and_images_are_there(on_stage: Stage, containerd: PrivateContainerd) -> None:
    assert containerd.ctr(*RUN, "c1") == "vector\n"
    on_stage.stop_serving()  # nothing needs the network
    kill_everything(on_stage)
    assert containerd.run(*RUN, "c2").returncode != 0
    containerd.run("containers", "rm", "c2")
    start_again(on_stage, containerd)
    assert containerd.ctr(*RUN, "c3") == "vector\n"
    assert sum(point.endswith("/layers") for point in mounts_of(on_stage)) == 1
    on_stage.serve()


def test_when_holder_and_data_plane_are_lost_at_once_images_come_back_by_themselves(on_stage: Stage, containerd: PrivateContainerd) -> None:
    before = on_stage.status()
    for lost in (before["holder"]["pid"], before["dataplane"]["pid"]):
        os.kill(lost, signal.SIGKILL)
    # Nobody asks for anything.
    until(lambda: (now := on_stage.status())["dataplane"] is not None and len(now["layers"]) == len(before["layers"]))
    assert on_stage.status()["pid"] == before["pid"]
    assert containerd.ctr(*RUN, "c7") == "vector\n"


def test_after_a_reboot_images_are_there(on_stage: Stage, containerd: PrivateContainerd) -> None:
    kill_everything(on_stage)
    for point in sorted(mounts_of(on_stage), key=len, reverse=True):
        subprocess.run(["umount", "--lazy", point], check=True)
    start_again(on_stage, containerd)
    assert containerd.ctr(*RUN, "c4") == "vector\n"


def test_status_and_metrics_tell_of_images_containers_and_waiting_reads(on_stage: Stage, containerd: PrivateContainerd) -> None:
    on_stage.metrics = f"127.0.0.1:{on_stage.reserve_port()}"
    on_stage.end_daemon()
    start_again(on_stage, containerd)
    containerd.ctr("run", "-d", "--snapshotter", "ipfs", "lazy", "seen", "sleep", "1000")
    try:
        status = on_stage.status()
        image = next(image for image in status["images"] if image["image"].endswith("lazy"))
        assert (image["layers"], image["layers_lazy"], image["layers_mounted"], image["modes"]) == (2, 2, 2, [on_stage.mode])
        assert 0 < image["bytes_cached"] < image["bytes"]
        container = next(one for one in status["containers"] if one["container"] == "seen")
        assert (container["namespace"], container["kind"], container["image"]) == ("default", "active", image["image"])
        assert container["mount"].startswith("overlay at" if on_stage.mode == "native" else "by containerd")
        assert status["holder"]["pid"] and status["holder"]["served"] >= 1 and status["reads"] == []
        text = on_stage.daemon("status").stdout
        assert "image       " in text and "container   default/seen of" in text
        with urllib.request.urlopen(f"http://{on_stage.metrics}/metrics") as answer:
            metrics = answer.read().decode()
        assert "ipfs_dataplane_up 1.0" in metrics and f'ipfs_layers{{mode="{on_stage.mode}"}} 2.0' in metrics
        # Every name is documented, and no other.
        documented = set(re.findall(r"`(ipfs_[a-z_]+)", (Path(__file__).parents[2] / "docs/configuration.md").read_text()))
        assert {line.split()[0].split("{")[0] for line in metrics.splitlines() if line and not line.startswith("#")} == documented
    finally:
        containerd.ctr("tasks", "rm", "--force", "seen")
        containerd.ctr("containers", "rm", "seen")


def doctor(on_stage: Stage) -> tuple[int, dict[str, tuple[str, str]]]:
    done = on_stage.cli("doctor", "--config", on_stage.config, "--json")
    return done.returncode, {finding["about"]: (finding["state"], finding["mend"]) for finding in json.loads(done.stdout)}


def test_the_doctor_finds_what_is_wrong_and_says_how_to_mend_it(on_stage: Stage, containerd: PrivateContainerd) -> None:
    on_stage.end_daemon()
    on_stage.start_daemon(containerd=str(containerd.address))
    containerd.wait_for_snapshotter("ipfs")
    status, found = doctor(on_stage)
    bits = found.pop("bit flips")  # whether there is fs-verity is the machine's affair
    assert bits == ("good", "") or (bits[0] == "note" and bits[1].startswith("cache.verify = true")), bits
    assert (status, {state for state, _ in found.values()}) == (0, {"good"}), found
    assert set(found) == {"fuse", "kernel", "daemon", "holder", "data plane", "containerd", "node", "peers", "disk", "cache"}
    on_stage.end_daemon()
    on_stage.stop_serving()
    status, found = doctor(on_stage)
    assert status == 1 and {about for about, (state, _) in found.items() if state == "wrong"} == {"daemon", "peers"}
    assert all(mend for state, mend in found.values() if state == "wrong")
    on_stage.serve()
    start_again(on_stage, containerd)


def test_other_settings_reach_the_data_plane_under_a_running_container(on_stage: Stage, containerd: PrivateContainerd) -> None:
    containerd.ctr("run", "-d", "--snapshotter", "ipfs", "lazy", "upgraded", "sleep", "1000")
    before = on_stage.status()["dataplane"]["pid"]
    on_stage.end_daemon()
    on_stage.start_daemon(give_up=50)
    containerd.wait_for_snapshotter("ipfs")
    after = on_stage.status()["dataplane"]["pid"]
    assert after != before
    out = containerd.ctr(
        "tasks", "exec", "--exec-id", "e", "upgraded", "sh", "-c", "cat /etc/hostname; md5sum < /usr/lib/big > /dev/null && echo read"
    )
    assert out == "vector\nread\n"
    containerd.ctr("tasks", "rm", "--force", "upgraded")
    containerd.ctr("containers", "rm", "upgraded")


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as made:
        yield made


class Systemd:
    """As much of systemd as keeps descriptors: a notify socket, and a start with LISTEN_FDS. (bash: dash knows no descriptor over 9.)"""

    def __init__(self, folder: Path) -> None:
        self.address = folder / "notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.address))
        self.socket.settimeout(PATIENCE)
        self.store: dict[str, int] = {}

    def close(self) -> None:
        self.socket.close()
        for descriptor in self.store.values():
            os.close(descriptor)

    def hear_until(self, word: str) -> None:
        while True:
            data, ancillary, _, _ = self.socket.recvmsg(4096, 1024)
            fields = dict(line.split("=", 1) for line in data.decode().splitlines())
            if fields.get("FDSTOREREMOVE") == "1" and fields["FDNAME"] in self.store:
                os.close(self.store.pop(fields["FDNAME"]))
            for _, _, content in ancillary:
                self.store[fields["FDNAME"]] = array.array("i", content)[0]
            if word in data.decode().splitlines():
                return

    def start(self, on_stage: Stage) -> subprocess.Popen[bytes]:
        """The daemon, with what is in the store."""
        script = 'export LISTEN_PID=$$; exec "$@"'
        environment = ENVIRONMENT | {
            "NOTIFY_SOCKET": str(self.address),
            "LISTEN_FDS": str(len(self.store)),
            "LISTEN_FDNAMES": ":".join(self.store),
        }
        descriptors = list(self.store.values())
        moved = " ".join(f"{number}<&{descriptor}" for number, descriptor in enumerate(descriptors, start=3))
        with (on_stage.root / "daemon.log").open("ab") as log:
            return subprocess.Popen(
                ["bash", "-c", f"exec {moved}; {script}", "bash", BIN / "ipfs-snapshotter", "--config", on_stage.config],
                env=environment, pass_fds=descriptors, stdout=log, stderr=log,
            )  # fmt: skip


def test_with_systemd_a_container_outlives_the_end_of_everything(
    on_stage: Stage, containerd: PrivateContainerd, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    systemd = stack.enter_context(contextlib.closing(Systemd(tmp_path)))
    on_stage.end_daemon()
    daemon = systemd.start(on_stage)
    systemd.hear_until("READY=1")
    containerd.wait_for_snapshotter("ipfs")
    assert list(systemd.store) == ["fuse"]
    containerd.ctr("run", "-d", "--snapshotter", "ipfs", "lazy", "survivor", "sleep", "1000")
    kill_all(on_stage)
    daemon.wait()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    # It waits for its files, and gets them.
    command = [
        containerd.ctr_binary,
        "--address",
        containerd.address,
        "tasks",
        "exec",
        "--exec-id",
        "e2",
        "survivor",
        "md5sum",
        "/usr/lib/big",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=containerd.environment) as waiting:
        daemon = systemd.start(on_stage)
        systemd.hear_until("READY=1")
        out, _ = waiting.communicate(timeout=PATIENCE)
    assert out.endswith(b"/usr/lib/big\n") and waiting.returncode == 0
    containerd.wait_for_snapshotter("ipfs")
    containerd.ctr("tasks", "rm", "--force", "survivor")
    containerd.ctr("containers", "rm", "survivor")
    daemon.terminate()
    assert daemon.wait(PATIENCE) == 0
    start_again(on_stage, containerd)


def test_a_container_that_waits_for_a_network_that_is_away_can_be_killed_and_removed(
    on_stage: Stage, containerd: PrivateContainerd
) -> None:
    # What is cached here and in the node goes, so that every byte has to come from the network.
    assert on_stage.daemon("stop", "--unmount").returncode == 0
    on_stage.ended()
    for kept in ("snapshotter/cache", "pulling"):
        shutil.rmtree(on_stage.root / kept)
    start_again(on_stage, containerd)
    containerd.ctr("run", "-d", "--snapshotter", "ipfs", "lazy", "stuck", "sh", "-c", "sleep 1000")
    on_stage.stop_serving()
    with subprocess.Popen(
        [containerd.ctr_binary, "--address", containerd.address, "tasks", "exec", "--exec-id", "e3", "stuck", "cat", "/usr/lib/big"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=containerd.environment,
    ):  # fmt: skip
        reads = until(lambda: on_stage.status()["reads"])
        assert all(read["cid"].startswith("baf") and read["seconds"] >= 0 and read["readers"] for read in reads)
        containerd.ctr("tasks", "kill", "--all", "--signal", "SIGKILL", "stuck")
    containerd.ctr("tasks", "rm", "--force", "stuck")
    containerd.ctr("containers", "rm", "stuck")
    on_stage.serve()


def test_a_pinned_image_is_here_completely_and_stays_pinned_over_a_reboot(on_stage: Stage, containerd: PrivateContainerd) -> None:
    def said(*command: str) -> str:
        done = on_stage.daemon(*command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert said("pin", "lazy") == "lazy: 2 layers are pinned, and here completely\n"
    (image,) = on_stage.status()["images"]
    assert (image["pinned"], image["pin_left"], image["bytes_cached"]) == (True, 0, image["bytes"])
    on_stage.stop_serving()
    shutil.rmtree(on_stage.root / "pulling")  # our node's own blocks, too
    assert on_stage.daemon("stop", "--unmount", "--force").returncode == 0
    on_stage.ended()
    on_stage.serve()  # portable layers ask for their TOCs
    start_again(on_stage, containerd)
    until(lambda: [image for image in on_stage.status()["images"] if image["pinned"]])
    on_stage.stop_serving()
    assert containerd.ctr(*RUN, "pinned") == "vector\n"
    assert "pinned\n" in said("status")
    chain_id = image["snapshot"]
    refused = on_stage.daemon("unpin", chain_id)
    assert refused.returncode == 1 and "hint: it is pinned as lazy" in refused.stderr
    said("unpin", "lazy")
    assert not on_stage.status()["images"][0]["pinned"]
    assert said("pin", "--no-wait", chain_id).endswith("are pinned, and fetched in the background\n")
    said("unpin", chain_id)
    unknown = on_stage.daemon("pin", "no/such:image")
    assert unknown.returncode == 1 and "no layer of 'no/such:image' is here" in unknown.stderr
    on_stage.serve()


def test_stop_unmount_leaves_nothing(on_stage: Stage, containerd: PrivateContainerd) -> None:
    assert containerd.ctr(*RUN, "c5") == "vector\n"
    assert on_stage.daemon("stop", "--unmount").returncode == 0
    on_stage.ended()
    assert (mounts_of(on_stage), processes(on_stage)) == ([], [])
    until(lambda: not loops_of(on_stage), lambda: loops_of(on_stage))  # who looks at every new block device may still have one open
    assert [path for path in on_stage.root.rglob("*") if path.is_socket()] == []


def test_stop_unmount_cleans_up_after_everything_was_killed(on_stage: Stage, containerd: PrivateContainerd) -> None:
    assert containerd.ctr(*RUN, "c6") == "vector\n"
    kill_everything(on_stage)
    assert on_stage.daemon("stop", "--unmount").returncode == 0
    assert (mounts_of(on_stage), processes(on_stage)) == ([], [])
    until(lambda: not loops_of(on_stage), lambda: loops_of(on_stage))  # who looks at every new block device may still have one open
    assert [path for path in on_stage.root.rglob("*") if path.is_socket()] == []
