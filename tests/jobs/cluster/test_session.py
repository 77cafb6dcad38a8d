from __future__ import annotations

import importlib
import logging
import os
import shutil
import time
from types import SimpleNamespace

import pytest
import ray

from jobs.cluster import session
from jobs.cluster.session import ClusterError, RaySession


class Group:
    def __init__(self, bundles, waits):
        self.bundles, self.waits = bundles, waits

    def wait(self, seconds):
        return self.waits.pop(0)


@pytest.fixture
def cluster(monkeypatch):
    """A cluster that has a CPU, and gets what it is asked for at the third look."""
    made = {"groups": [], "removed": [], "growth": "possible"}

    def placement_group(bundles):
        made["groups"].append(Group(bundles, [False, False, True]))  # type: ignore[attr-defined]
        return made["groups"][-1]

    groups = importlib.import_module("ray.util.placement_group")  # its package has a function of this name
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(groups, "placement_group", placement_group)
    monkeypatch.setattr(groups, "remove_placement_group", made["removed"].append)  # type: ignore[attr-defined]
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    monkeypatch.setattr(session, "autoscaler_status", lambda address: made["growth"])
    monkeypatch.setattr(session, "SECONDS_BETWEEN_NOTES", 0)
    return made


def test_a_cluster_grows_to_what_was_asked_for(cluster):
    said = []  # type: ignore[var-annotated]
    RaySession("10.0.0.1:6379", num_cpus=3, num_gpus=2, say=said.append)._wait_for_machines()
    (group,) = cluster["groups"]
    assert group.bundles == [{"GPU": 1.0}, {"GPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}]
    assert said == ["waiting for 2 GPUs (0 are there) and 3 CPUs (1 are there)"] * 2
    assert cluster["removed"] == [group]  # the actors get what it held


def test_a_cluster_that_does_not_grow_is_waited_for_and_called_so(cluster):
    cluster["growth"] = "none"
    said = []  # type: ignore[var-annotated]
    RaySession("10.0.0.1:6379", num_gpus=2, say=said.append)._wait_for_machines()
    assert said[0] == (
        "waiting for 2 GPUs (0 are there); the cluster has no autoscaler, so start them yourself, or stop the job"
    )


def test_what_a_cluster_can_never_have_is_not_waited_for(cluster):
    cluster["growth"] = "impossible"
    with pytest.raises(ClusterError, match="2 GPUs .0 are there. were asked for, which this cluster cannot provide"):
        RaySession("10.0.0.1:6379", num_gpus=2)._wait_for_machines()


@pytest.mark.parametrize("asked", [{}, {"num_cpus": 1}])
def test_nothing_is_waited_for_that_is_there(cluster, asked):
    RaySession("10.0.0.1:6379", **asked)._wait_for_machines()
    assert cluster["groups"] == []


def test_a_cluster_that_wants_a_token_says_so_in_a_sentence(monkeypatch, capfd):
    def refuse(**options):
        os.write(2, b"gcs_client.cc: Unauthenticated: RPC error: InvalidAuthToken: ...\n" * 20)
        raise ConnectionError("Failed to connect")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(session, "_check_address", lambda address: None)
    with pytest.raises(ClusterError, match="RAY_AUTH_MODE=token"), RaySession("10.0.0.1:6379"):
        pass
    assert capfd.readouterr().err == ""


def test_what_ray_says_is_shown_when_it_does_not_start(monkeypatch, capfd):
    def fail(**options):
        os.write(2, b"raylet: no space left on device\n")
        raise RuntimeError("Failed to start")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(RuntimeError, match="Failed to start"), RaySession():
        pass
    assert "no space left on device" in capfd.readouterr().err


MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.59.0
    Python: 3.11.4
This process on node 10.0.0.2 was started with:
    Ray: 2.60.0
    Python: 3.12.1
"""


@pytest.mark.parametrize(
    ("address", "error", "says"),
    [
        (
            "10.0.0.1:6379",
            RuntimeError(MISMATCH),
            "is Ray 2.59.0 on Python 3.11.4, this is Ray 2.60.0",
        ),
        (
            "10.0.0.1:6379",
            ConnectionError("Failed to connect to Ray cluster"),
            "not part of the Ray cluster at 10.0.0.1:6379.*ray job submit",
        ),
        ("auto", ConnectionError("Could not find any running Ray instance. Please"), "ray job submit"),
    ],
    ids=["other version", "nobody there", "auto"],
)
def test_what_is_wrong_is_said_in_a_sentence(monkeypatch, capfd, address, error, says):
    def fail(**options):
        raise error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session, "_check_address", lambda address: None)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(ClusterError, match=says) as caught, RaySession(address):
        pass
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_busy_machine_gets_another_chance(monkeypatch):
    starts = []

    def start(**options):
        starts.append(options)
        if len(starts) < session.STARTS:
            raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    said = []  # type: ignore[var-annotated]
    with RaySession(say=said.append):
        pass
    assert len(starts) == session.STARTS
    assert said == ["Ray did not start within 30 seconds, this machine is busy; retrying"] * 2


def test_what_an_error_still_holds_ends_before_ray_does(monkeypatch):
    ended = []

    class Executor:
        def __del__(self):
            ended.append("executor")

    def work():
        executor = Executor()  # noqa: F841
        try:
            raise KeyError
        except KeyError:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: None)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append("ray"))
    with pytest.raises(KeyboardInterrupt), RaySession("local"):
        work()
    assert ended == ["executor", "ray"]


def test_a_full_disk_is_the_reason_why_ray_does_not_start(monkeypatch, tmp_path, capfd):
    def fail(**options):
        raise RuntimeError("Timed out waiting for file /tmp/ray/session/gcs_server_port_1")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=4_096))
    with pytest.raises(ClusterError, match=f"the disk of {tmp_path} is full"), RaySession():
        pass
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**30))
    with pytest.raises(ClusterError, match="too busy"), RaySession():
        pass


def test_a_log_of_ray_that_cannot_be_written_is_not_worth_a_traceback(monkeypatch, capfd):
    class Full(logging.Handler):
        def emit(self, record):
            try:
                raise OSError(28, "No space left on device")
            except OSError:
                self.handleError(record)

    monkeypatch.setattr(logging, "raiseExceptions", True)
    logger = logging.Logger("full")
    logger.addHandler(Full())
    logger.warning("before")
    assert "Traceback" in capfd.readouterr().err
    session._quieten_ray_data()
    logger.warning("after")
    assert capfd.readouterr().err == ""


def test_gpus_that_are_not_there_are_not_believed_in(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match="--num-gpus 2: this machine has 1"), RaySession(num_gpus=2):
        pass


def test_local_is_a_ray_on_this_machine(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert RaySession("local").address is None
    assert RaySession().address == "10.0.0.1:6379"


def test_an_address_where_nobody_is_is_said_at_once(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    started = time.monotonic()
    with pytest.raises(ClusterError, match="no Ray cluster at 127.0.0.1:9, "), RaySession("127.0.0.1:9"):
        pass
    assert time.monotonic() - started < session.CONNECT_SECONDS
