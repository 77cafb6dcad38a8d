"""All exceptions of the project are in one tree; commands print these, and let bugs keep their traceback."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Iterator

import pytest

import captionlib
import jobs
from captionlib.errors import CaptionlibError, CaptionlibWarning, ImageError, UserError
from captionlib.storage.errors import AccessDenied, InputFault, TransportFault
from jobs.cli.errors import JobIncomplete
from jobs.cli.exit_codes import Terminated, run_command


def exceptions() -> Iterator[type[BaseException]]:
    for package in (captionlib, jobs):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for value in vars(importlib.import_module(module.name)).values():
                if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__ == module.name:
                    yield value


def test_the_tree() -> None:
    found = set(exceptions())
    assert {UserError, ImageError, JobIncomplete, AccessDenied, InputFault, TransportFault} < found
    public = {kind for kind in found if not kind.__name__.startswith("_")} - {Terminated, CaptionlibWarning}
    assert not [kind for kind in public if not issubclass(kind, CaptionlibError)]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("no such setting"), 2),
        (InputFault("DamagedFile", "the list is damaged"), 2),
        (TransportFault(5, "no route"), 2),
        (JobIncomplete("2 images are not done"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_is_foreseen_is_a_sentence(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def action() -> int:
        raise error

    assert run_command("prog", action) == code
    printed = capsys.readouterr().err
    assert printed.startswith("prog: ")
    assert "Traceback" not in printed


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        run_command("prog", lambda: int("seven"))


def test_errors_survive_the_way_between_processes() -> None:
    fault = pickle.loads(pickle.dumps(InputFault("NotFound", "it was there")))
    assert (fault.kind, fault.message, str(fault)) == ("NotFound", "it was there", "NotFound: it was there")
