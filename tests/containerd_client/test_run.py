"""The commands themselves, against both versions: output, exit status, signals, what is left, one line for what is wrong."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from ipfs_store.cids import format_cid
from ipfs_store.images.push import PushOptions, push_image
from ipfs_store.images.sources import SourceOptions
from ipfs_store.nodes.embedded import EmbeddedNode
from snapshotter.containerd.source import open_source
from tests.containerd import PrivateContainerd
from tests.containerd_client.images import BusyboxImage
from tests.patience import PATIENCE

pytestmark = [pytest.mark.root, pytest.mark.containerd]
STORE = Path(sys.executable).parent / "ipfs-store"
NAMESPACE = "runs"


@dataclass
class Cli:
    """``ipfs-store`` with a node that has one image."""

    containerd: PrivateContainerd
    node: Path
    cid: str

    def command(self, name: str, *arguments: str) -> list[str]:
        where = ["--address", str(self.containerd.address), "--namespace", NAMESPACE]
        return [str(STORE), "--node", "embedded", "--node-path", str(self.node), name, *where, *arguments]

    def __call__(self, name: str, *arguments: str, input: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(name, *arguments), capture_output=True, input=input, timeout=120, env=self.containerd.environment
        )

    def run(self, *arguments: str, input: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        return self("run", "--rm", "--snapshotter", "overlayfs", *arguments, input=input)

    def containers(self) -> str:
        return self.containerd.ctr("container", "ls", "-q", namespace=NAMESPACE)


async def _push(folder: Path, config: dict[str, object]) -> str:
    node = EmbeddedNode(folder / "node", peers=[], timeout=2)
    name = f"docker.io/test/busybox:{config.get('User', 'root')}".replace("1234:77", "numbers")
    return format_cid((await push_image(node, BusyboxImage(folder, name=name, config=config), PushOptions())).cid)


@pytest.fixture(scope="module")
def cli(containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    folder = tmp_path_factory.mktemp("cli")
    return Cli(containerd, folder / "node", trio.run(_push, folder, {}))


def test_what_the_image_says_is_run_from_its_cid(cli: Cli) -> None:
    first = cli.run(cli.cid)
    assert (first.returncode, first.stdout) == (0, b"hello from the image\n"), first.stderr
    again = cli.run(f"ipfs://{cli.cid}")
    assert (again.returncode, again.stdout, again.stderr) == (0, b"hello from the image\n", b"")
    by_name = cli.run("test/busybox:root", "echo", "by", "name")
    assert by_name.stdout == b"by name\n"
    assert cli.containers() == ""


def test_the_exit_status_is_passed_on(cli: Cli) -> None:
    assert cli.run(cli.cid, "sh", "-c", "exit 42").returncode == 42
    assert cli.run(cli.cid, "false").returncode == 1


def test_streams_are_kept_apart_and_whole(cli: Cli) -> None:
    done = cli.run(cli.cid, "sh", "-c", "echo out; echo err >&2; cat /data/numbers /data/numbers")
    assert done.stderr == b"err\n"
    assert done.stdout == b"out\n" + b"0123456789" * 100_000


def test_input_reaches_the_program_and_ends(cli: Cli) -> None:
    data = os.urandom(300_000)
    done = cli.run("--interactive", cli.cid, "cat", input=data)
    assert done.stdout == data
    assert cli.run(cli.cid, "cat", input=b"not asked for").stdout == b""


def test_environment_folder_mounts_and_read_only(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("from outside\n")
    done = cli.run(
        "--env", "GREETING=other", "-e", "MORE=1", "--cwd", "/data", "--read-only", "--mount", f"{tmp_path}:/tmp:ro", cli.cid,
        "sh", "-c", "echo $GREETING $MORE $PATH; ls; cat /tmp/given; echo x > /tmp/new || echo x > /new || echo denied",
    )  # fmt: skip
    assert done.stdout == b"other 1 /bin\nnumbers\nfrom outside\ndenied\n", done.stderr


def test_without_rm_the_container_stays_and_its_name_is_taken(cli: Cli) -> None:
    arguments = ("run", "--snapshotter", "overlayfs", "--name", "stays", cli.cid, "true")
    assert cli(*arguments).returncode == 0
    assert cli.containers().split() == ["stays"]
    taken = cli(*arguments)
    assert taken.returncode == 1
    assert b"there is a container 'stays' already" in taken.stderr
    cli.containerd.ctr("container", "rm", "stays", namespace=NAMESPACE)


def test_a_program_that_is_not_there_leaves_nothing(cli: Cli) -> None:
    assert cli("rpull", "--snapshotter", "overlayfs", cli.cid).returncode == 0  # so that run has nothing to say of layers
    done = cli("run", "--snapshotter", "overlayfs", "--name", "nothing", cli.cid, "no-such-program")
    assert done.returncode == 1
    assert b"no-such-program" in done.stderr
    assert done.stderr.count(b"\n") <= 2
    assert cli.containers() == ""
    assert "nothing" not in cli.containerd.ctr("snapshots", "ls", namespace=NAMESPACE)


def test_signals_are_passed_on(cli: Cli) -> None:
    script = "trap 'echo got it; exit 7' TERM; echo ready; while true; do sleep 0.1; done"
    command = cli.command("run", "--rm", "--snapshotter", "overlayfs", cli.cid, "sh", "-c", script)
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=cli.containerd.environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"got it\n"
    assert process.returncode == 7
    assert cli.containers() == ""


def test_a_program_that_does_not_listen_is_killed_by_the_third(cli: Cli) -> None:
    script = "trap 'echo ignored' INT; echo ready; while true; do sleep 0.1; done"
    command = cli.command("run", "--rm", "--snapshotter", "overlayfs", cli.cid, "sh", "-c", script)
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=cli.containerd.environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == b"ignored\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 137
    assert cli.containers() == ""


def test_output_that_nobody_reads_ends_the_container(cli: Cli) -> None:
    command = cli.command("run", "--rm", "--snapshotter", "overlayfs", cli.cid, "sh", "-c", "while echo more; do true; done")
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=cli.containerd.environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"more\n"
        process.stdout.close()
        assert process.wait(PATIENCE) == 137
    assert cli.containers() == ""


def test_a_terminal(cli: Cli) -> None:
    ours, theirs = pty.openpty()
    command = cli.command(
        "run", "--rm", "-t", "--snapshotter", "overlayfs", cli.cid, "sh", "-c", "echo ready; read line; echo [$line]; ls -l /proc/self/fd/0"
    )
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=cli.containerd.environment) as process:
        os.close(theirs)
        seen = b""
        while b"ready" not in seen:
            seen += os.read(ours, 1000)
        os.write(ours, b"typed\r")
        while True:
            try:
                seen += os.read(ours, 1000)
            except OSError:  # the end of a terminal
                break
    assert process.returncode == 0
    assert b"[typed]" in seen
    assert b"/dev/pts/0" in seen
    os.close(ours)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("worker", b"uid=1234(worker) gid=1235(workers) groups=1235(workers),1300(extra)\n"),
        ("1234:77", b"uid=1234(worker) gid=77 groups=77\n"),
        ("999", b"uid=999 gid=0(root) groups=0(root)\n"),
    ],
)
def test_the_user_of_the_image(cli: Cli, tmp_path: Path, user: str, expected: bytes) -> None:
    cid = trio.run(_push, tmp_path, {"User": user})
    done = Cli(cli.containerd, tmp_path / "node", cid).run(cid, "id")
    assert done.stdout == expected, done.stderr


def test_an_unknown_user_is_named(cli: Cli, tmp_path: Path) -> None:
    cid = trio.run(_push, tmp_path, {"User": "nobody-here"})
    done = Cli(cli.containerd, tmp_path / "node", cid).run("--name", "unknown", cid, "id")
    assert done.returncode == 1
    assert b"'nobody-here'" in done.stderr
    assert cli.containers() == ""
    assert "unknown" not in cli.containerd.ctr("snapshots", "ls", namespace=NAMESPACE)


def test_rpull_prints_what_it_did(cli: Cli) -> None:
    done = cli("rpull", "--snapshotter", "overlayfs", "--name", "mine", "--json", cli.cid)
    said = json.loads(done.stdout)
    assert (said["name"], said["cid"], said["snapshotter"]) == ("mine", cli.cid, "overlayfs")
    assert {layer["how"] for layer in said["layers"]} <= {"pulled", "present"}
    quiet = cli("rpull", "--snapshotter", "overlayfs", "--name", "mine", "--quiet", cli.cid)
    assert (quiet.stdout, quiet.stderr) == (b"mine\n", b"")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("rpull", "no-cid"), 1, b"is not a CID"),
        (
            ("rpull", "--timeout", "0.2", "--snapshotter", "overlayfs", "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"),
            1,
            b"bafkreigh2",
        ),
        (("rpull", "CID"), 1, b"[proxy_plugins.ipfs]"),
        (("rpull", "--address", "/nowhere/c.sock", "CID"), 1, b"no containerd at /nowhere/c.sock"),
        (("rpull",), 2, b"CID"),
        (("run", "--snapshotter", "overlayfs", "no/image:here"), 1, b"no image 'no/image:here'"),
        (("run", "--snapshotter", "overlayfs", "--mount", "nonsense", "CID"), 1, b"is no mount"),
        (("run", "--snapshotter", "overlayfs", "--tty", "CID"), 2, b"no terminal"),
        (("run", "--snapshotter", "nope", "CID"), 1, b"no snapshotter 'nope'"),
    ],
)
def test_bad_input_is_one_line(cli: Cli, arguments: tuple[str, ...], status: int, says: bytes) -> None:
    done = cli(*(cli.cid if argument == "CID" else argument for argument in arguments))
    assert (done.returncode, done.stdout) == (status, b"")
    assert says in done.stderr
    assert done.stderr.startswith(b"ipfs-store: error: ")
    assert done.stderr.count(b"\n") <= 2


async def test_an_image_of_containerd_is_a_source(cli: Cli, tmp_path: Path) -> None:
    pulled = await trio.to_thread.run_sync(lambda: cli("rpull", "--snapshotter", "overlayfs", "--name", "source", cli.cid))
    assert pulled.returncode == 0, pulled.stderr
    async with open_source("source", SourceOptions(address=str(cli.containerd.address), namespace=NAMESPACE, folder=tmp_path)) as image:
        node = EmbeddedNode(tmp_path / "other", peers=[], timeout=2)
        result = await push_image(node, image, PushOptions(name="docker.io/test/busybox:root"))
    assert format_cid(result.cid) == cli.cid
    assert os.listdir(tmp_path) == ["other"]
