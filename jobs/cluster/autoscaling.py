"""Whether a Ray cluster adds machines by itself, and whether it could ever add those that a job waits for.

Ray has no public call for it; this reads what its autoscalers, the first and the second, write for `ray status`.
"""

from __future__ import annotations

import json
import logging
from typing import Any, Literal

Growth = Literal["possible", "none", "impossible"]
"""`none`: the cluster has no autoscaler; `impossible`: it has one, which knows no machines for what is asked."""

_TIMEOUT_SECONDS = 10
logger = logging.getLogger(__name__)


def autoscaler_status(gcs_address: str) -> Growth:
    """How the cluster stands to the requests that it has now; `possible` where it cannot be told."""
    try:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

        client = GcsClient(address=gcs_address)
        reply = GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=_TIMEOUT_SECONDS))
        status = client.internal_kv_get(b"__autoscaling_status")
        if reply.HasField("autoscaling_state"):
            state = reply.autoscaling_state
            return "impossible" if has_infeasible(state) else "possible"
        return "none" if status and is_fixed(json.loads(status)) else "possible"
    except (ImportError, AttributeError, TypeError, RuntimeError, ValueError) as error:  # another version of Ray
        logger.debug("cannot tell how the cluster grows: %s", error)
        return "possible"


def has_infeasible(state: Any) -> bool:
    """Whether the second autoscaler found no kind of machine for a request.

    Args:
        state: an `AutoscalingState`.
    """
    return bool(state.infeasible_resource_requests or state.infeasible_gang_resource_requests)


def is_fixed(status: dict[str, Any]) -> bool:
    """Whether the first autoscaler only looks on: then it calls each machine's type by the machine's own id."""
    types = status.get("autoscaler_report", {}).get("node_type_mapping") or {}
    return bool(types) and all(name == f"node_{node}" for node, name in types.items())
