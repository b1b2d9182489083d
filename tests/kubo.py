"""A real Kubo daemon for tests: own repository, own ports, no way out of this machine."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import threading
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE
from tests.requirements import require_tool

SWARM_KEY = "/key/swarm/psk/1.0.0/\n/base16/\n"


def new_swarm_key() -> str:
    """The contents of a ``swarm.key``: daemons that share one talk to each other and to nobody else."""
    return SWARM_KEY + secrets.token_hex(32) + "\n"


class KuboDaemon:
    """``ipfs daemon`` in the folder ``path``. ``start`` returns when it is ready, ``stop`` when it is gone."""

    def __init__(self, path: Path, *, swarm_key: str | None = None, config: dict[str, Any] | None = None, profiles: str = "") -> None:
        """``config``: values to set beyond the defaults, keyed by dotted names (``Gateway.NoFetch``); ``profiles`` of `ipfs init`, with commas."""
        self.path = path
        self._profiles = ",".join(filter(None, ("server", "test", profiles)))
        self.binary = require_tool("ipfs", go_build=True)
        self.environment = {**os.environ, "IPFS_PATH": str(path), "IPFS_TELEMETRY": "off"}
        self.api = ""
        """The RPC's multiaddr, once started."""
        self.gateway = ""
        """The gateway's URL, once started."""
        self._process: subprocess.Popen[str] | None = None
        self._init(swarm_key, config or {})

    def run(self, *arguments: str, input: bytes | None = None) -> bytes:
        """The output of ``ipfs ARGUMENTS`` against this daemon (or, before ``start``, its repository)."""
        done = subprocess.run([self.binary, *arguments], env=self.environment, input=input, capture_output=True)
        if done.returncode:
            raise AssertionError(f"ipfs {' '.join(arguments)}: {done.stderr.decode()}")
        return done.stdout

    def start(self) -> KuboDaemon:
        """Start it and wait until it says that it is ready."""
        self._process = subprocess.Popen(
            [self.binary, "daemon", "--migrate=false"], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._process.stdout is not None
        lines = []
        for line in self._process.stdout:
            lines.append(line)
            if "Daemon is ready" in line:
                break
        else:
            raise AssertionError("Kubo did not start:\n" + "".join(lines))
        self._drain = threading.Thread(target=self._process.stdout.read)  # a full pipe would stop it
        self._drain.start()
        self.api = (self.path / "api").read_text().strip()
        self.gateway = (self.path / "gateway").read_text().strip()
        return self

    def processor_seconds(self) -> float:
        """What it has taken of a processor, since it was started."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def api_url(self) -> str:
        """The RPC as ``http://HOST:PORT``."""
        _, _, host, _, port = self.api.split("/")
        return f"http://{host}:{port}"

    def connect(self, other: KuboDaemon) -> None:
        """Join the swarms of the two."""
        # Not `ipfs id`: it leaves out addresses of the loopback.
        for address in other.run("swarm", "addrs", "listen").decode().split():
            if "/tcp/" in address and "/ws" not in address:
                self.run("swarm", "connect", f"{address}/p2p/{json.loads(other.run('id'))['ID']}")
                return
        raise AssertionError("the other daemon has no TCP address")

    def stop(self) -> None:
        """End it; nothing happens if it does not run."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._drain.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None

    def __enter__(self) -> KuboDaemon:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _init(self, swarm_key: str | None, config: dict[str, Any]) -> None:
        self.run("init", "--profile", self._profiles, "--empty-repo")
        if swarm_key is not None:
            (self.path / "swarm.key").write_text(swarm_key)
            self.environment["LIBP2P_FORCE_PNET"] = "1"
        file = self.path / "config"
        settings = json.loads(file.read_text())
        values: dict[str, Any] = {
            "Addresses.API": "/ip4/127.0.0.1/tcp/0",
            "Addresses.Gateway": "/ip4/127.0.0.1/tcp/0",
            "Addresses.Swarm": ["/ip4/127.0.0.1/tcp/0"],
            "AutoConf.Enabled": False,
            "AutoTLS.Enabled": False,
            "Bootstrap": [],
            "DNS.Resolvers": {},
            "Discovery.MDNS.Enabled": False,
            "Gateway.NoFetch": True,
            "Ipns.DelegatedPublishers": [],
            "Routing.DelegatedRouters": [],
            "Routing.Type": "none" if swarm_key is None else "dht",
            "Swarm.AddrFilters": [],
            "Swarm.DisableNatPortMap": True,
            "Swarm.Transports.Network.QUIC": False,
            "Swarm.Transports.Network.Websocket": False,
            "Swarm.Transports.Network.WebTransport": False,
            "Swarm.Transports.Network.WebRTCDirect": False,
        }
        for name, value in {**values, **config}.items():
            *folders, last = name.split(".")
            place = settings
            for folder in folders:
                place = place.setdefault(folder, {}) if place.get(folder) is not None else place.__setitem__(folder, {}) or place[folder]
            place[last] = value
        file.write_text(json.dumps(settings))
