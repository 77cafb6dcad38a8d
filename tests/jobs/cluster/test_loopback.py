"""A Ray that a job starts on one machine is nobody else's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json
import ray, psutil  # Ray brings it along
from jobs.cluster.session import RaySession
with RaySession("local", num_cpus=1):
    ray.get(ray.remote(lambda: 1).remote())
    me = psutil.Process()
    known = {process.pid for process in [me, *me.children(recursive=True)]}
    print(json.dumps([c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid in known]))
"""


def test_every_port_is_on_the_loopback_address():
    environment = {**os.environ, "RAY_TMPDIR": "/tmp", "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    root = Path(__file__).parents[3]
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    addresses = json.loads(ended.stdout.splitlines()[-1])
    assert len(addresses) >= 5
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}
