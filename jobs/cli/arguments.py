"""Parses a command line and an optional settings file into a frozen dataclass, before anything starts."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from captionlib.config import SearchConfig, from_dict, to_dict
from captionlib.errors import UserError
from captionlib.version import __version__
from jobs.cli.help_text import tidy_help
from jobs.cli.pipes import quiet_when_unread

T = TypeVar("T")
_LOOKS = (tyro.conf.PositionalMetavarFromFieldName,)  # --help shows INPUT and OUTPUT by name


def parse(
    cls: type[T],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
    defaults: Mapping[str, Any] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> T:
    """Parse a command line into settings. The command line overrides the settings file, which overrides `defaults`.

    An invalid command line or file ends the process with an error message on stderr and exit code 2.

    Args:
        renamed: flags of earlier versions, and the present names, which the error message states.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--version" in arguments:
        print(f"{prog} {__version__}")
        raise SystemExit(0)
    try:
        _check_renamed(arguments, renamed or {})
        path = peek(arguments, "config")
        values = dict(defaults or {}) | ({} if path is None else read_file(cls, Path(path), defaults or {}, renamed))
        default = _with_defaults(cls, values)
        with _tidy_stdout():
            made = tyro.cli(cls, args=arguments, prog=prog, description=description, config=_LOOKS, default=default)
        _warn_of_unused(made, arguments, {} if path is None else _read_mapping(Path(path)))
        return made
    except ValueError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


@contextlib.contextmanager
def _tidy_stdout() -> Iterator[None]:
    """Print what is written to stdout, which is the text of --help, when it is complete and tidied."""
    written = io.StringIO()
    try:
        with contextlib.redirect_stdout(written):
            yield
    finally:
        if written.getvalue():
            with quiet_when_unread():
                print(tidy_help(written.getvalue()), end="")


def peek(argv: Sequence[str], name: str) -> str | None:
    """Return the value of one flag before the whole command line is parsed; None if the flag is absent."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(f"--{name}", f"--{name.replace('-', '_')}", dest="value")
    try:
        value: str | None = parser.parse_known_args(list(argv))[0].value
    except argparse.ArgumentError:
        return None  # the flag has no value, which the real parser reports
    return value


def peek_setting(argv: Sequence[str], name: str) -> str | None:
    """Return the text of a setting from its flag or, without that, from the settings file; None if it is in neither.

    Raises:
        UserError: the settings file cannot be read.
    """
    value, path = peek(argv, name), peek(argv, "config")
    if value is not None or path is None:
        return value
    stored = {str(key).replace("_", "-"): text for key, text in _read_mapping(Path(path)).items()}
    found = stored.get(name)
    return found if isinstance(found, str) else None


def _check_renamed(arguments: Sequence[str], renamed: Mapping[str, str]) -> None:
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag in renamed:
            raise UserError(f"{flag} is called {renamed[flag]} now: write {renamed[flag]}")


def _warn_of_unused(settings: Any, arguments: Sequence[str], stored: Mapping[str, Any]) -> None:
    """Print one line per kind of search that ignores settings that the user gave."""
    search = getattr(settings, "search", None)
    if not isinstance(search, SearchConfig) or getattr(settings, "quiet", False):
        return
    prefix = "--search."
    given = {argument.partition("=")[0].removeprefix(prefix) for argument in arguments if argument.startswith(prefix)}
    given = {name.replace("-", "_") for name in (*given, *stored.get("search", {}))}
    ignored: dict[str, list[str]] = {}
    for name, kind in search.unused().items():
        if name in given:
            ignored.setdefault(kind, []).append(f"{prefix}{name.replace('_', '-')}")
    for kind, flags in ignored.items():
        verb = "is" if len(flags) == 1 else "are"
        print(f"warning: {' and '.join(flags)} {verb} not used by {kind}", file=sys.stderr, flush=True)


def read_file(
    cls: type, path: Path, defaults: Mapping[str, Any], renamed: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Read settings by name from a YAML or TOML file. Names are those of the flags; `search` is a nested group.

    Raises:
        UserError: the file cannot be read, or contains an unknown setting.
    """
    stored = _read_mapping(path)
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    # Groups without a prefix on the command line have none in a file either.
    flat = {
        field.name: group
        for group in ("source", "work", "faults", "access", "captioner")
        if dataclasses.is_dataclass(hints.get(group))
        for field in dataclasses.fields(hints[group])
    }
    for key, value in stored.items():
        name = str(key).replace("-", "_")
        now = (renamed or {}).get(f"--{name.replace('_', '-')}")
        if now is not None and not isinstance(value, dict):
            place, _, inner = now.removeprefix("--").partition(".")
            raise UserError(f"{path}: {key} is called {inner} in the group {place} now")
        if name in flat:
            groups.setdefault(flat[name], {})[name] = value
        elif name in hints and dataclasses.is_dataclass(hints[name]) and name not in flat.values():
            groups[name] = dict(value) if isinstance(value, dict) else value
        elif name in hints and name not in flat.values() and name != "config":
            values[name] = _checked(hints[name], value, f"{path}: {name}")
        else:
            known = sorted({*hints, *flat} - {*flat.values(), "config"})
            raise UserError(f"{path}: unknown setting {key!r}; known: {', '.join(known)}")
    for name, group in groups.items():
        given = to_dict(defaults[name]) if name in defaults else {}
        prefix = f"{path}: {name}." if name not in flat.values() else f"{path}: "
        values[name] = from_dict(hints[name], {**given, **group} if isinstance(group, dict) else group, prefix)
    return values


def _checked(hint: Any, value: Any, where: str) -> Any:
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise UserError(f"{where}: expected one of {', '.join(typing.get_args(hint))}, got {value!r}")
        return value
    expected = list if typing.get_origin(hint) is tuple else hint
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise UserError(f"{where}: expected {expected.__name__}, got {value!r}")
    return tuple(value) if expected is list else value


def _with_defaults(cls: type[T], values: Mapping[str, Any]) -> T:
    """Create an instance with these values. Fields without a default remain required on the command line."""
    required = {
        known.name: tyro.MISSING
        for known in dataclasses.fields(cls)  # type: ignore[arg-type]
        if known.default is dataclasses.MISSING and known.default_factory is dataclasses.MISSING
    }
    return cls(**{**required, **values})


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"the settings file {path} cannot be read: {error.strerror}") from error
    try:
        if path.suffix == ".toml":
            if sys.version_info < (3, 11):
                raise UserError("TOML needs Python 3.11 or newer: write it as YAML")
            import tomllib

            return tomllib.loads(text)
        import yaml

        values = yaml.safe_load(text) or {}
    except Exception as error:  # the libraries raise different exceptions; all messages state the place in the file
        raise UserError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected settings by name, got {type(values).__name__}")
    return values
