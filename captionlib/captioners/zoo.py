"""Which captioners there are: `--model` → the captioner, opened. The one place that knows the kinds."""

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
    "openai": "captionlib.captioners.openai_server",
}
"""What `--model` begins with, before a colon, and the module of that kind. To add one, write a module with a `KIND`."""
CHECKPOINT = "captionlib.captioners.checkpoint"
"""The kind of every other model."""
NO_OPTIONS = CaptionerOptions()


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of captioner."""

    noun: str
    """What a model of it is called in a sentence, such as `a checkpoint of this project`."""
    honours: frozenset[str]
    """The settings of `CaptionerOptions` that mean something to it."""
    default_search: Callable[[str, CaptionerOptions], SearchConfig]
    """The search that a model asks for. Never fails: what is wrong with the model is said when it is opened."""
    open: Callable[[str, SearchConfig, CaptionerOptions], OpenCaptioner]
    """Look at a model without its weights. Raises UserError where it is not to be had, or cannot do what is asked."""


def default_search(model: str, options: CaptionerOptions = NO_OPTIONS) -> SearchConfig:
    """The search that a model asks for.

    Args:
        model: as `open_captioner` takes it.
    """
    kind, name = _find(model)
    return kind.default_search(name, options)


def open_captioner(model: str, search: SearchConfig, options: CaptionerOptions = NO_OPTIONS) -> OpenCaptioner:
    """Look at a model, without its weights.

    Args:
        model: `hf:NAME`, `hf:NAME@REVISION` or `hf:FOLDER`, a model in the Hugging Face hub's form; `openai:NAME`,
            one that a server has; or a checkpoint of this project: a folder, a URL, or `default`.

    Raises:
        UserError: it is not to be had, or cannot do what is asked; the message says what to do.
        ModuleNotFoundError: a package is not installed; the message names the extra.
    """
    kind, name = _find(model)
    options.check(kind.honours, kind.noun)
    if options.max_new_tokens is not None:
        search = dataclasses.replace(search, max_tokens=options.max_new_tokens)
    return kind.open(name, search, options)


def refuse(search: SearchConfig, noun: str, **why: str) -> None:
    """Refuse what a captioner cannot do in its search.

    Args:
        why: for settings of `SearchConfig` that it lacks, what is to be said about each.

    Raises:
        UserError: one of them is not as in a plain search.
    """
    plain: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(SearchConfig)}
    for name, reason in why.items():
        if getattr(search, name) != plain[name]:
            raise UserError(f"--search.{name.replace('_', '-')} is not to be had with {noun}: {reason}")


def _find(model: str) -> tuple[Kind, str]:
    prefix, _, name = model.partition(":")
    module, name = (KINDS[prefix], name) if prefix in KINDS else (CHECKPOINT, model)
    kind: Kind = importlib.import_module(module).KIND
    return kind, name
