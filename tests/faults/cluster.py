"""A private Ray cluster of several nodes on this machine, started from the shell as on real machines."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from .processes import Session, wait_until
from .servers import free_ports

STORE_BYTES = 200_000_000


class Cluster:
    """A head node, and further nodes that can be added and killed.

    Nodes are ended by the ids of their processes, never by `ray stop`, which ends every Ray of the machine.

    Args:
        env: of the nodes and so of all workers; credentials belong here.
        logs: takes a file per node.
        store_bytes: object store of each node.
    """

    def __init__(self, env: Mapping[str, str], logs: Path, store_bytes: int = STORE_BYTES) -> None:
        # Short, because Ray's sockets lie in it and their names may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))
        self.env = {**env, "RAY_TMPDIR": str(self.folder), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
        self.logs, self.store_bytes = logs, store_bytes
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        self.nodes: dict[str, Session] = {}

    def start(self, name: str, *, num_cpus: int) -> Session:
        """Start a node, the first one as the head, and wait until Ray says that it runs."""
        port = self.address.rpartition(":")[2]
        head = ["--head", f"--port={port}", "--include-dashboard=false"]
        # Two nodes on one machine must not both take Ray's fixed defaults.
        names = ("node-manager", "object-manager", "dashboard-agent-listen", "metrics-export", "runtime-env-agent")
        ports = [f"--{name}-port={port}" for name, port in zip(names, free_ports(len(names)), strict=True)]
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--block", "--node-ip-address=127.0.0.1",
            *([f"--address={self.address}"] if self.nodes else [*head, f"--temp-dir={self.folder}"]),
            f"--num-cpus={num_cpus}", f"--object-store-memory={self.store_bytes}", "--disable-usage-stats",
            "--min-worker-port=0", "--max-worker-port=0", *ports,
        ]  # fmt: skip
        log = self.logs / f"{name}.log"
        log.write_bytes(b"")
        node = Session(command, env=self.env, log=log)
        self.nodes[name] = node
        if not wait_until(lambda: b"Ray runtime started" in log.read_bytes() or not node.is_running, 90):
            raise RuntimeError(f"the Ray node {name} does not start: {log.read_text()[-2000:]}")
        assert node.is_running, log.read_text()[-2000:]
        return node

    def stop(self) -> None:
        """Kill all nodes, the head last."""
        for node in reversed(self.nodes.values()):
            node.end()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def cluster(env: Mapping[str, str], logs: Path, store_bytes: int = STORE_BYTES) -> Iterator[Cluster]:
    """A cluster without nodes yet; all that are started in the `with` are killed at its end."""
    made = Cluster(env, logs, store_bytes)
    try:
        yield made
    finally:
        made.stop()
