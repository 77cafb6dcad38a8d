"""What Ray's two autoscalers write, in the shapes that were seen on real clusters."""

from __future__ import annotations

import pytest
from ray.core.generated.autoscaler_pb2 import AutoscalingState, GangResourceRequest, ResourceRequest

from jobs.cluster.autoscaling import has_infeasible, is_fixed


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ({"a794": "node_a794", "a93d": "node_a93d"}, True),  # `ray start` by hand: nobody adds machines
        ({"a794": "local.cluster.node", "a93d": "local.cluster.node"}, False),  # `ray up`
        ({}, False),
        (None, False),
    ],
)
def test_a_cluster_without_a_launcher_is_fixed(types: dict[str, str] | None, expected: bool) -> None:
    assert is_fixed({"autoscaler_report": {"node_type_mapping": types}}) is expected
    assert is_fixed({}) is False


def test_requests_for_which_there_are_no_machines() -> None:
    assert not has_infeasible(AutoscalingState())
    assert has_infeasible(AutoscalingState(infeasible_gang_resource_requests=[GangResourceRequest()]))
    assert has_infeasible(AutoscalingState(infeasible_resource_requests=[ResourceRequest()]))
