"""Tidies the --help text that tyro writes: what a flag takes and does, without the types of Python."""

from __future__ import annotations

import re
import textwrap

_FLAG_PAIR = re.compile(r"(--[\w.-]+), --(?:[\w-]+\.)*no-[\w.-]+")
_USAGE_PAIR = re.compile(r"\[(--[\w.-]+) \| --(?:[\w-]+\.)*no-[\w.-]+\]")
_NONE = re.compile(r"\s*\(default: None\)")
_OFF = re.compile(r"\s*\(default: False\)")
_ON = re.compile(r"\(default: True\)")
WIDTH = 100
"""Maximum number of characters per line."""


def tidy_help(text: str) -> str:
    """Rewrite the entries of all groups: `{None}|INT` is `INT`, and only flags that are on have a `--no-…`.

    Args:
        text: as tyro writes it without a terminal: groups under a heading and a rule, their lines indented by 2.
    """
    lines: list[str] = []
    group: list[str] = []
    for line in text.splitlines():
        if not line.strip("- "):
            continue  # a horizontal rule or an empty line
        if line.startswith("  ") and not line.startswith("    python"):
            group.append(line[2:].rstrip())
            continue
        lines += _tidy_group(group)
        group = []
        if line.startswith((" -", "    ")):
            lines.append(line)
        elif line.startswith(" "):
            lines += ["", f"{line.strip()}:"]
        else:
            line = _USAGE_PAIR.sub(r"[\1]", line.replace("{None}|", ""))
            lines += ["", *textwrap.wrap(line, WIDTH)] if lines else [line]
    return "\n".join([*lines, *_tidy_group(group)]) + "\n"


def _tidy_group(bodies: list[str]) -> list[str]:
    """Rewrite the lines of one group."""
    indents = [len(body) - len(body.lstrip()) for body in bodies if body.startswith("  ")]
    indent = min((found for found in indents if found > 4), default=0)
    tidied: list[str] = []
    for entry in _entries(bodies):
        if entry[0].startswith("-h"):
            tidied += _tidy_entry(["--version", " " * indent + "show the version and exit"], indent, WIDTH - 2)
        tidied += _tidy_entry(entry, indent, WIDTH - 2)
    return [f"  {line}".rstrip() for line in tidied]


def _entries(bodies: list[str]) -> list[list[str]]:
    entries: list[list[str]] = []
    for body in bodies:
        if body.startswith(" ") and entries:
            entries[-1].append(body)
        else:
            entries.append([body])
    return entries


def _tidy_entry(entry: list[str], indent: int, width: int) -> list[str]:
    """Rewrite one flag or argument, whose description begins in the column `indent`."""
    if not entry[0].startswith(("-", "[")) and not re.match(r"[A-Z][A-Z_]+\b", entry[0]):
        return textwrap.wrap(" ".join(entry), width)  # a description of the group
    # Two spaces precede a description; a single one precedes what the flag takes.
    is_beside = len(entry[0]) > indent and entry[0][indent - 2 : indent] == "  " and entry[0][indent] != " "
    name = (entry[0][:indent] if is_beside else entry[0]).strip()
    described = " ".join(line.strip() for line in ([entry[0][indent:]] if is_beside else []) + entry[1:])
    name = name.replace("{None}|", "")
    if _OFF.search(described) and _FLAG_PAIR.search(name):
        name, described = _FLAG_PAIR.sub(r"\1", name), _OFF.sub("", described)
    described = _ON.sub("(default: on)", _NONE.sub("", described))
    wrapped = textwrap.wrap(described, width - indent, break_long_words=False) or [""]
    if len(name) + 1 < indent:
        first, rest = [f"{name:{indent}}{wrapped[0]}"], wrapped[1:]
    else:
        first, rest = textwrap.wrap(name, width, subsequent_indent="    ", break_on_hyphens=False), wrapped
    return [*first, *(f"{'':{indent}}{line}".rstrip() for line in rest)]
