"""The kinds of captioners: opens the captioner for `--model`. This is the only place that distinguishes them."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from captionlib.captioners.base import OpenCaptioner
from captionlib.captioners.options import CaptionerOptions
from captionlib.config import SearchConfig
from captionlib.errors import UserError

KINDS = {
    "hf": "captionlib.captioners.hub.kind",
    "openai": "captionlib.captioners.server.kind",
}
"""Prefix of `--model` before a colon, and the module of the kind. To add a kind, write a module with a `KIND`."""
CHECKPOINT = "captionlib.captioners.checkpoint"
"""The kind of every other model."""
NO_OPTIONS = CaptionerOptions()


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of captioner."""

    noun: str
    """Description of its models in messages, such as `a checkpoint of this project`."""
    honours: frozenset[str]
    """Settings of `CaptionerOptions` that it supports."""
    default_search: Callable[[str, CaptionerOptions], SearchConfig]
    """Returns the default search of a model. It never fails; mistakes are reported when the model is opened."""
    open: Callable[[str, SearchConfig, CaptionerOptions], OpenCaptioner]
    """Examines a model without its weights. Raises UserError if it is not available or does not support the
    settings."""


def default_search(model: str, options: CaptionerOptions = NO_OPTIONS) -> SearchConfig:
    """Return the default search of a model.

    Args:
        model: as for `open_captioner`.
    """
    kind, name = _find(model)
    return kind.default_search(name, options)


def open_captioner(model: str, search: SearchConfig, options: CaptionerOptions = NO_OPTIONS) -> OpenCaptioner:
    """Examine a model without its weights.

    Args:
        model: `hf:NAME`, `hf:NAME@REVISION` or `hf:FOLDER` for a model of the Hugging Face hub; `openai:NAME` for a
            model on servers; otherwise a checkpoint of this project: a folder, a URL, or `default`.

    Raises:
        UserError: the model is not available, or does not support the settings; the message states what to do.
        ModuleNotFoundError: a package is not installed; the message names the extra.
    """
    kind, name = _find(model)
    options.check(kind.honours, kind.noun)
    if options.max_new_tokens is not None:
        search = dataclasses.replace(search, max_tokens=options.max_new_tokens)
    return kind.open(name, search, options)


def refuse(search: SearchConfig, noun: str, **why: str) -> None:
    """Reject search settings that a captioner does not support.

    Args:
        why: reason for each unsupported setting of `SearchConfig`.

    Raises:
        UserError: one of them differs from its default.
    """
    plain: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(SearchConfig)}
    for name, reason in why.items():
        if getattr(search, name) != plain[name]:
            raise UserError(f"--search.{name.replace('_', '-')} is not supported by {noun}: {reason}")


def _find(model: str) -> tuple[Kind, str]:
    prefix, _, name = model.partition(":")
    module, name = (KINDS[prefix], name) if prefix in KINDS else (CHECKPOINT, model)
    kind: Kind = importlib.import_module(module).KIND
    return kind, name
