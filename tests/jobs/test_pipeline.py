from __future__ import annotations

import importlib
import inspect
import os

import pytest
import ray

from jobs import pipeline
from jobs.pipeline import PipelineError, RaySession


class Group:
    def __init__(self, bundles, waits):
        self.bundles, self.waits = bundles, waits

    def wait(self, seconds):
        return self.waits.pop(0)


@pytest.fixture
def cluster(monkeypatch):
    """A cluster that has a CPU, and gets what it is asked for at the third look."""
    made = {"groups": [], "removed": []}

    def placement_group(bundles):
        made["groups"].append(Group(bundles, [False, False, True]))
        return made["groups"][-1]

    groups = importlib.import_module("ray.util.placement_group")  # its package has a function of this name
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(groups, "placement_group", placement_group)
    monkeypatch.setattr(groups, "remove_placement_group", made["removed"].append)
    return made


def test_a_cluster_grows_to_what_was_asked_for(cluster):
    said = []
    RaySession("10.0.0.1:6379", num_cpus=3, num_gpus=2, say=said.append)._wait_for_machines()
    (group,) = cluster["groups"]
    assert group.bundles == [{"GPU": 1.0}, {"GPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}]
    assert said == ["waiting for 2 GPUs (0 are there) and 3 CPUs (1 are there)"] * 2
    assert cluster["removed"] == [group]  # the actors get what it held


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
    with pytest.raises(PipelineError, match="RAY_AUTH_MODE=token"), RaySession("10.0.0.1:6379"):
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


def test_this_version_of_ray_data_passes_retries_on():
    """Where it does not, a part that kills its worker would be tried for ever."""
    parameters = inspect.signature(ray.data.Dataset.map_batches).parameters.values()
    assert any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    assert pipeline._remote_args(max_retries=3) == {"max_retries": 3}
