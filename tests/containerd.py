"""A containerd of a test's own: own folders and sockets, nothing of it left at the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.patience import PATIENCE, until
from tests.requirements import require_root, require_tool

VERSIONS = ("1.6", "2.4")


class PrivateContainerd:
    """containerd in the folder ``root``; ``version`` "1.6" is the distribution's, "2.4" the one that scripts/setup builds.

    ``proxy_plugins``: snapshotter name -> its socket. Keep ``root`` short: a socket's path has at most 107 bytes.
    """

    def __init__(self, root: Path, version: str, proxy_plugins: Mapping[str, Path] | None = None, extra_config: str = "") -> None:
        require_root()
        require_tool("runc")
        self.root = root
        self.version = version
        built = version != "1.6"
        self.binary = require_tool("containerd", go_build=built)
        self.ctr_binary = require_tool("ctr", go_build=built)
        if built:
            require_tool("containerd-shim-runc-v2", go_build=True)
        self.address = root / "c.sock"
        self.log = root / "containerd.log"
        # The shim of the same version has to be found first.
        self.environment = {**os.environ, "PATH": f"{self.binary.parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
        self._config = root / "containerd.toml"
        self._process: subprocess.Popen[bytes] | None = None
        root.mkdir(parents=True, exist_ok=True)
        self._config.write_text(self._configuration(proxy_plugins or {}) + extra_config)

    def start(self) -> PrivateContainerd:
        """Start it and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self.binary, "--config", self._config], stdout=log, stderr=subprocess.STDOUT, env=self.environment, start_new_session=True
            )
        process = self._process
        try:
            until(lambda: self._answers() or process.poll() is not None, "it does not answer")
            assert process.poll() is None, "it ended"
        except AssertionError as error:
            self.stop()
            raise AssertionError(f"containerd did not start: {error}\n{self.log.read_text(errors='replace')[-3000:]}") from error
        return self

    def stop(self) -> None:
        """End it; containers and mounts stay as they are."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """End it as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def run(self, *arguments: str | Path, namespace: str = "default", input: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """``ctr ARGUMENTS``, whatever comes of it."""
        command = [self.ctr_binary, "--address", self.address, "--namespace", namespace, *arguments]
        return subprocess.run(command, capture_output=True, input=input, env=self.environment)

    def ctr(self, *arguments: str | Path, namespace: str = "default", input: bytes | None = None) -> str:
        """The output of ``ctr ARGUMENTS``, which must succeed."""
        done = self.run(*arguments, namespace=namespace, input=input)
        if done.returncode:
            raise AssertionError(f"ctr {' '.join(map(str, arguments))}: {done.returncode}: {done.stderr.decode()}{done.stdout.decode()}")
        return done.stdout.decode()

    def wait_for_snapshotter(self, name: str) -> None:
        """Return once containerd has connected to the proxy plugin: it pauses for seconds between its tries, and fails requests meanwhile."""
        until(lambda: self.run("snapshots", "--snapshotter", name, "ls").returncode == 0, f"containerd does not reach {name}")

    def __enter__(self) -> PrivateContainerd:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._process is not None:
                self._end_containers()
        finally:
            self.stop()
            self._unmount()

    def _configuration(self, plugins: Mapping[str, Path]) -> str:
        # CRI and NRI are switched off: a second containerd must not take the sockets of the machine's own.
        # Capabilities are version 2's: 1.6 passes labels to every snapshotter, and knows no such key.
        capable = '  capabilities = ["remap-ids"]\n' if self.version != "1.6" else ""
        proxies = "".join(f'[proxy_plugins.{name}]\n  type = "snapshot"\n  address = "{path}"\n{capable}' for name, path in plugins.items())
        disabled = ("grpc.v1.cri", "nri.v1.nri", "cri.v1.images", "cri.v1.runtime", "tracing.processor.v1.otlp", "internal.v1.tracing")
        return f"""version = 2
root = "{self.root}/root"
state = "{self.root}/state"
disabled_plugins = [{", ".join(f'"io.containerd.{name}"' for name in disabled)}]
[grpc]
  address = "{self.address}"
[ttrpc]
  address = "{self.address}.ttrpc"
{proxies}"""

    def _answers(self) -> bool:
        # A listening socket is not enough: plugins may still be loading.
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.address))
            except OSError:
                return False
        return self.run("version").returncode == 0

    def _end_containers(self) -> None:
        for namespace in self.run("namespaces", "ls", "-q").stdout.decode().split():
            for line in self.run("tasks", "ls", namespace=namespace).stdout.decode().splitlines()[1:]:
                self.run("tasks", "rm", "--force", line.split()[0], namespace=namespace)

    def _unmount(self) -> None:
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in sorted((point for point in points if point.startswith(f"{self.root}/")), key=len, reverse=True):
            subprocess.run(["umount", "-l", point], check=False, capture_output=True)
        # Shims outlive containerd by design; ours are those that name our socket.
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if b"containerd-shim" in command and str(self.address).encode() in command:
                os.kill(int(process.name), signal.SIGKILL)
