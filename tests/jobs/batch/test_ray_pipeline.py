from __future__ import annotations

import inspect

import ray

from jobs.batch import ray_pipeline


def test_this_version_of_ray_data_passes_retries_on():
    """Where it does not, a chunk that kills its worker would be tried for ever."""
    parameters = inspect.signature(ray.data.Dataset.map_batches).parameters.values()
    assert any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    assert ray_pipeline._remote_args(max_retries=3) == {"max_retries": 3}
