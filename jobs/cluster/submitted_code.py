"""Checks paths of jobs that run in the copy of the code that `ray job submit` makes."""

from __future__ import annotations

import os

from captionlib.errors import UserError
from captionlib.storage.paths import is_local

_PACKAGE = "/runtime_resources/working_dir_files/"


def check_paths_outlive_job(*paths: str) -> None:
    """Check that no path lies in the working directory of a submitted Ray job, which Ray deletes after the job.

    Raises:
        UserError: a path lies there, as every relative path does under `ray job submit`.
    """
    for path in paths:
        if is_local(path) and _PACKAGE in os.path.abspath(os.path.expanduser(path.removeprefix("file://"))):
            raise UserError(
                f"{path} lies in the copy of the code that `ray job submit` makes for a job and deletes with it: "
                "give a URL such as s3://…, or the whole path of a folder that all machines share"
            )
