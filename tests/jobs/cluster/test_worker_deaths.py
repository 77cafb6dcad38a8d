"""A process that dies says so once, in one line: which one, where, how, and what comes next."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from jobs.cluster import worker_deaths
from jobs.cluster.worker_deaths import WorkerDeaths

NODE = bytes(28)
THEN = ". Ray replaces it and tries its chunk again"
KILLED = "it ended without an exception (killed, perhaps for want of memory, or crashed in a library)"


def worker(pid: int, *, alive: bool = False, exit_type: int = 0, detail: str = "Connection reset by peer"):
    address = SimpleNamespace(node_id=NODE, ip_address="10.0.0.7")
    return SimpleNamespace(is_alive=alive, exit_type=exit_type, exit_detail=detail, pid=pid, worker_address=address)


@pytest.fixture
def said(monkeypatch):
    monkeypatch.setattr(worker_deaths, "_host", lambda worker: "node-a")
    return []


def test_the_process_with_the_model(said):
    deaths = WorkerDeaths(said.append)
    deaths.look({(NODE.hex(), 1)}, 0, [worker(1, alive=True), worker(2, alive=True)])
    assert said == []
    deaths.look(set(), 1, [worker(1), worker(2, alive=True)])
    assert said == [f"a process with the model on node-a died: {KILLED}{THEN}"]
    deaths.look({(NODE.hex(), 3)}, 1, [worker(1), worker(2, alive=True), worker(3, alive=True)])
    assert len(said) == 1  # each is reported once


def test_a_model_that_dies_right_after_its_start(said):
    WorkerDeaths(said.append).look(set(), 1, [worker(1)])
    assert said == [f"a process with the model on node-a died: {KILLED}{THEN}"]


def test_a_decoding_process_that_ray_killed_and_one_whose_machine_is_gone(said):
    WorkerDeaths(said.append).look(set(), 0, [worker(1, exit_type=4), worker(2, detail="The node has died")])
    assert said == [
        f"a decoding process on node-a died: Ray killed it, because the machine was low on memory{THEN}",
        f"a decoding process on node-a died: its machine was lost{THEN}",
    ]


def test_processes_that_end_as_they_should_are_not_mentioned_and_lines_not_repeated(said):
    deaths = WorkerDeaths(said.append)
    deaths.look(set(), 0, [worker(pid, exit_type=kind) for pid, kind in ((1, 1), (2, 2), (3, 3))])
    assert said == []
    deaths.look(set(), 0, [worker(4), worker(5)])
    assert len(said) == 1
