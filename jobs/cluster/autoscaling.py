"""Finds out whether a Ray cluster adds machines by itself, and whether it can add those that a job waits for.

Ray has no public function for this. This module reads the state that Ray's autoscalers, version 1 and 2, publish for
`ray status`.
"""

from __future__ import annotations

import json
import logging
from typing import Any, Literal

Growth = Literal["possible", "none", "impossible"]
"""`none`: the cluster has no autoscaler; `impossible`: no machine type of the autoscaler satisfies the request."""

_TIMEOUT_SECONDS = 10
logger = logging.getLogger(__name__)


def autoscaler_status(gcs_address: str) -> Growth:
    """Return whether the autoscaler can satisfy the pending requests; `possible` if that is unknown."""
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
    except (ImportError, AttributeError, TypeError, RuntimeError, ValueError) as error:
        # Other versions of Ray have another interface.
        logger.debug("cannot tell how the cluster grows: %s", error)
        return "possible"


def has_infeasible(state: Any) -> bool:
    """Whether autoscaler version 2 found no machine type for a request.

    Args:
        state: an `AutoscalingState`.
    """
    return bool(state.infeasible_resource_requests or state.infeasible_gang_resource_requests)


def is_fixed(status: dict[str, Any]) -> bool:
    """Whether autoscaler version 1 is read-only: then it reports each machine's own id as its type."""
    types = status.get("autoscaler_report", {}).get("node_type_mapping") or {}
    return bool(types) and all(name == f"node_{node}" for node, name in types.items())
