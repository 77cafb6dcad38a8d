"""The jobs as a user submits them to a cluster: refused without the token, complete although a machine dies.

The cluster is a real one, a head and two workers started from the shell with token authentication, on private ports
of this machine. Its machines have the project's dependencies, but not the project.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests"))
from faults.processes import Session, wait_until  # noqa: E402
from faults.servers import free_ports  # noqa: E402

from tests.uninstalled import make_environment  # noqa: E402

pytestmark = pytest.mark.slow

NUM_PHOTOS = 900
STORE_BYTES = 200_000_000
START_SECONDS = 120
JOB_SECONDS = 900


@dataclass
class Cluster:
    """A head that runs no tasks, and workers of different sizes, each in a session of its own."""

    folder: Path
    env: Mapping[str, str]
    python: Path
    """Of an environment with the dependencies and without the project: the code comes with each job."""
    ports: list[int] = field(default_factory=lambda: free_ports(3))
    nodes: dict[str, Session] = field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        return [str(self.python), "-m", "ray.scripts.scripts"]

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.ports[1]}"

    def start(self, name: str, *, num_cpus: int) -> None:
        """Start a node, the first one as the head."""
        gcs, dashboard, client = self.ports
        if self.nodes:
            role = [f"--address=127.0.0.1:{gcs}"]
        else:
            role = ["--head", f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
            role += ["--dashboard-host=127.0.0.1", f"--temp-dir={self.env['RAY_TMPDIR']}"]
        # Fixed, or two nodes on one machine take the same ones; nor does Ray wait then until the agents have theirs.
        names = ("dashboard-agent-listen", "dashboard-agent-grpc", "metrics-export", "runtime-env-agent")
        ports = [f"--{name}-port={port}" for name, port in zip(names, free_ports(len(names)), strict=True)]
        command = [
            *self.command, "start", "--block", "--node-ip-address=127.0.0.1", *role, f"--num-cpus={num_cpus}", *ports,
            f"--object-store-memory={STORE_BYTES}",
        ]  # fmt: skip
        for _ in range(3):  # Ray gives itself 30 seconds, which a busy machine may exceed
            log = self.folder / f"{name}.log"
            log.write_bytes(b"")
            node = Session(command, env=self.env, log=log)
            self.nodes[name] = node
            wait_until(lambda: b"Ray runtime started" in log.read_bytes() or not node.is_running, START_SECONDS)  # noqa: B023
            if node.is_running and b"Ray runtime started" in log.read_bytes():
                return
            node.end()
        raise AssertionError(f"the node {name} does not start: {log.read_text()[-3000:]}")

    def kill(self, name: str) -> None:
        """Take a machine away."""
        self.nodes.pop(name).end()

    def ray(self, *arguments: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
        """A `ray …` command from the project's folder; its exit code and what it prints."""
        log = self.folder / f"command-{time.monotonic_ns()}.log"
        session = Session([*self.command, *arguments], env={**self.env, **(env or {})}, log=log, cwd=ROOT)
        try:
            return session.wait(JOB_SECONDS), log.read_text(errors="replace")
        finally:
            session.end()

    def submit(
        self, *arguments: str, job: str = "caption", env: Mapping[str, str] | None = None, wait: bool = True
    ) -> tuple[int, str]:
        """The command of the README."""
        patience = () if wait else ("--no-wait",)
        command = ("python", "-m", f"jobs.{job}", *arguments, "--address", "auto")
        return self.ray("job", "submit", *patience, "--working-dir", ".", "--", *command, env=env)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    assert importlib.util.find_spec("aiohttp_cors"), "the job server is missing: pip install 'ray[default]'"
    folder = tmp_path_factory.mktemp("cluster")
    python = make_environment(folder / "environment")
    (folder / "token").write_text(secrets.token_hex(32))
    short = tempfile.mkdtemp(prefix="ray-")  # Ray's sockets lie in it, and their names may have 107 characters
    env = {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "RAY_TMPDIR": short,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "CAPTIONLIB_CACHE": str(folder / "cache"),
    }
    made = Cluster(folder, env, python)
    made.env = {**env, "RAY_API_SERVER_ADDRESS": made.dashboard}
    try:
        made.start("head", num_cpus=0)
        made.start("large", num_cpus=2)
        made.start("small", num_cpus=1)
        yield made
    finally:
        for name in reversed(list(made.nodes)):
            made.kill(name)
        shutil.rmtree(short, ignore_errors=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NUM_PHOTOS real photos, each of the project's many times."""
    folder = tmp_path_factory.mktemp("photos")
    originals = sorted((ROOT / "tests" / "photos").glob("*.jpg"))
    for i in range(NUM_PHOTOS):
        shutil.copy(originals[i % len(originals)], folder / f"{i:05d}.jpg")
    return folder


def files(output: Path) -> dict[str, int]:
    """Committed files → when they were written, in ns."""
    return {path.name: path.stat().st_mtime_ns for path in (output / "captions").glob("*.parquet")}


def images(output: Path) -> int:
    return sum(pq.read_metadata(output / "captions" / name).num_rows for name in files(output))


def assert_complete(output: Path) -> None:
    rows = pq.read_table(output / "captions").to_pylist()
    assert sorted(row["image_id"] for row in rows) == list(range(NUM_PHOTOS))
    assert all(row["caption"] and row["error"] is None for row in rows)
    # The same photo has the same caption, whichever machine did it.
    originals = len(list((ROOT / "tests" / "photos").glob("*.jpg")))
    captions = {(int(Path(row["path"]).stem) % originals, row["caption"]) for row in rows}
    assert len(captions) == originals
    record = json.loads((output / "run.json").read_text())
    assert record["state"] == "complete"
    assert record["images"] == {"planned": NUM_PHOTOS, "captioned": NUM_PHOTOS, "failed": 0}


@pytest.mark.parametrize(
    ("token", "says"),
    [(None, "Authentication required"), ("0123456789abcdef" * 4, "Invalid authentication token")],
    ids=["without the token", "with another token"],
)
def test_refused(cluster: Cluster, photos: Path, tmp_path: Path, token: str | None, says: str) -> None:
    env = {"RAY_AUTH_MODE": "disabled"} if token is None else {"RAY_AUTH_TOKEN": token}
    code, printed = cluster.submit(str(photos), str(tmp_path / "out"), env=env)
    assert code == 1
    assert says in printed
    assert not (tmp_path / "out").exists()


def test_complete_although_a_machine_dies(cluster: Cluster, photos: Path, tmp_path: Path) -> None:
    """The machine with the model is lost after the first parts, and another comes in its place, as on a spot market."""
    output = tmp_path / "out"
    code, printed = cluster.submit(str(photos), str(output), "--images-per-chunk", "16", wait=False)
    assert code == 0, printed
    name = re.findall(r"Job '(raysubmit_\w+)' submitted", printed)[0]
    assert wait_until(lambda: images(output) > NUM_PHOTOS // 10, JOB_SECONDS), cluster.ray("job", "logs", name)[1]
    cluster.kill("large")
    assert images(output) < NUM_PHOTOS, "the machine was to die in the middle"
    cluster.start("another", num_cpus=2)
    _, printed = cluster.ray("job", "logs", "-f", name)
    assert f"Job '{name}' succeeded" in printed
    assert_complete(output)


def test_training_from_photos_to_captions(cluster: Cluster, tmp_path: Path) -> None:
    """Features, a model of them trained by two workers on two machines, and captions by that model."""
    photos = tmp_path / "photos"
    photos.mkdir()
    originals = sorted((ROOT / "tests" / "photos").glob("*.jpg"))
    rows = ["path,caption,split"]
    for i in range(4 * len(originals)):
        original = originals[i % len(originals)]
        shutil.copy(original, photos / f"{i:02d}.jpg")
        rows.append(f"{i:02d}.jpg,a photo of the {original.stem.replace('_', ' ')},{'dev' if i >= 27 else 'train'}")
    (tmp_path / "captions.csv").write_text("\n".join(rows) + "\n")

    features, run = str(tmp_path / "features"), str(tmp_path / "run")
    code, printed = cluster.submit(str(photos), features, job="extract_features")
    assert code == 0, printed
    code, printed = cluster.submit(
        features, run, "--data.kind", "csv", "--data.captions-file", str(tmp_path / "captions.csv"),
        "--num-workers", "2", "--cpus-per-worker", "1", "--training.epochs", "3", "--training.min-count", "1",
        "--training.images-per-step", "6", "--decoder.hidden-dim", "32", job="train",
    )  # fmt: skip
    assert code == 0, printed
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [row["epoch"] for row in history] == [1, 2, 3]

    code, printed = cluster.submit(str(photos), str(tmp_path / "captions"), "--model", f"{run}/best")
    assert code == 0, printed
    assert pq.read_table(tmp_path / "captions" / "captions").num_rows == len(rows) - 1


def test_goes_on_after_a_stop(cluster: Cluster, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = (str(photos), str(output), "--images-per-chunk", "16")
    code, printed = cluster.submit(*arguments, wait=False)
    assert code == 0, printed
    name = re.findall(r"Job '(raysubmit_\w+)' submitted", printed)[0]
    assert wait_until(lambda: images(output) > NUM_PHOTOS // 10, JOB_SECONDS), cluster.ray("job", "logs", name)[1]
    assert cluster.ray("job", "stop", name)[0] == 0
    done = files(output)
    assert 0 < images(output) < NUM_PHOTOS
    code, printed = cluster.submit(*arguments)
    assert code == 0, printed
    assert_complete(output)
    record = json.loads((output / "run.json").read_text())
    assert len(record["runs"]) == 2
    assert record["runs"][1]["images"] <= NUM_PHOTOS - 16 * len(done)  # what was done was not done again
