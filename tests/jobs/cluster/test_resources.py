from __future__ import annotations

import pytest

from jobs.cluster.resources import Node, Plan, plan


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        # num_actors, actor_cpus, actor_gpus, actor_threads, decode_cpus, num_decoders
        ([Node(1)], Plan(1, 0.5, 0, 1, 0.5, 1)),
        ([Node(2)], Plan(2, 0.5, 0, 1, 0.5, 2)),
        ([Node(4)], Plan(4, 0.5, 0, 1, 0.5, 4)),
        ([Node(8)], Plan(8, 0.5, 0, 1, 0.5, 8)),
        ([Node(12)], Plan(8, 1.0, 0, 2, 0.5, 8)),
        ([Node(64)], Plan(8, 6.0, 0, 8, 0.5, 32)),
        ([Node(128)], Plan(16, 6.0, 0, 8, 0.5, 64)),
        ([Node(0), Node(8), Node(8)], Plan(16, 0.46, 0, 1, 0.5, 17)),  # a head node without CPUs
        ([Node(4), Node(16)], Plan(10, 1.5, 0, 2, 0.5, 10)),
        ([Node(4), Node(64)], Plan(17, 3.0, 0, 4, 0.5, 34)),
        ([Node(8, memory_gib=5)], Plan(4, 1.5, 0, 2, 0.5, 4)),  # a copy of the model for each actor
        ([Node(2, memory_gib=0.5)], Plan(1, 1.5, 0, 2, 0.5, 1)),
        ([Node(16, gpus=1)], Plan(1, 1.0, 1, 1, 1.0, 15)),
        ([Node(8, gpus=4)], Plan(4, 1.0, 1, 1, 1.0, 4)),
        ([Node(4, gpus=4)], Plan(4, 0.25, 1, 1, 1.0, 3)),
        ([Node(8, gpus=1), Node(32)], Plan(1, 1.0, 1, 1, 1.0, 39)),  # decoding on the other machine, too
    ],
)
def test_automatic_plan(nodes, expected):
    assert plan(nodes) == expected


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 31, 48, 96, 128])
@pytest.mark.parametrize("num_nodes", [1, 3])
@pytest.mark.parametrize("num_actors", [None, 1, 2, 3])
def test_everything_fits_at_once(cpus, num_nodes, num_actors):
    made = plan([Node(cpus)] * num_nodes, num_actors)
    # Place the actors on machines, then look for room for one decoding task.
    free = [float(cpus)] * num_nodes
    for _ in range(made.num_actors):
        free.sort()
        assert free[-1] >= made.actor_cpus - 1e-9
        free[-1] -= made.actor_cpus
    assert max(free) >= made.decode_cpus - 1e-9
    assert made.num_actors == (num_actors or made.num_actors)


@pytest.mark.parametrize("sizes", [(1, 1), (2, 2), (1, 2), (4, 12), (4, 4, 16), (3, 9), (8, 24, 8), (16, 64), (5, 7)])
@pytest.mark.parametrize("num_actors", [None, 2])
def test_wherever_the_actors_come_together_there_is_room_to_decode(sizes, num_actors):
    made = plan([Node(cpus) for cpus in sizes], num_actors)
    for cpus in sizes:  # the last machine
        actors = min(made.num_actors, int((cpus + 1e-9) // made.actor_cpus))
        assert cpus - actors * made.actor_cpus >= made.decode_cpus - 1e-9


@pytest.mark.parametrize(
    ("nodes", "num_actors", "message"),
    [
        ([], None, "0 CPUs"),
        ([Node(0.5)], None, r"0\.5 CPUs for tasks, at least 1 is needed"),
        ([Node(2)], 50, "50 actors do not fit into 2 CPUs"),
        ([Node(8, gpus=2)], 3, "3 actors were asked for, but the cluster has 2 GPUs"),
        ([Node(2)], 0, "at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(nodes, num_actors, message):
    with pytest.raises(ValueError, match=message):
        plan(nodes, num_actors)
