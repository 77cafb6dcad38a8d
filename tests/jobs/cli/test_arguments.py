from __future__ import annotations

import sys

import pytest

from captionlib.config import SearchConfig
from jobs.batch.settings import CaptionSettings
from jobs.cli.arguments import parse, peek, peek_setting


def settings(*argv, defaults=None):
    return parse(CaptionSettings, list(argv), prog="caption", description="", defaults=defaults)


def test_input_and_output_are_enough():
    made = settings("photos", "out")
    assert (made.input, made.output, made.inputs) == ("photos", "out", ("photos",))
    assert made.work.batch_size is None
    assert made.search == SearchConfig()


def test_flags():
    made = settings("photos", "out", "--also", "more", "--also", "s3://b/p", "--search.method", "sample",
                    "--search.seed", "3", "--batch-size", "7", "--max-error-share", "1", "--no-report")  # fmt: skip
    assert made.inputs == ("photos", "more", "s3://b/p")
    assert (made.search.method, made.search.seed) == ("sample", 3)
    assert (made.work.batch_size, made.faults.max_error_share, made.report) == (7, 1.0, False)


def test_the_checkpoints_search_is_the_default_and_flags_change_parts_of_it():
    of_checkpoint = SearchConfig(beam_width=5, max_tokens=30)
    made = settings("photos", "out", "--search.max-tokens", "12", defaults={"search": of_checkpoint})
    assert made.search == SearchConfig(beam_width=5, max_tokens=12)


@pytest.mark.parametrize("suffix", ["yaml", "toml"])
def test_a_settings_file(tmp_path, suffix):
    path = tmp_path / f"job.{suffix}"
    if suffix == "yaml":
        path.write_text("input: photos\nalso: [more]\nbatch-size: 4\nnum_actors: 2\nsearch: {method: greedy}\n")
    else:
        path.write_text(
            'input = "photos"\nalso = ["more"]\nbatch-size = 4\nnum_actors = 2\n[search]\nmethod = "greedy"\n'
        )
    if suffix == "toml" and sys.version_info < (3, 11):
        with pytest.raises(SystemExit):
            settings("--config", str(path), "photos", "out")
        return
    made = settings("photos", "out", f"--config={path}", "--batch-size", "9", defaults={"search": SearchConfig(seed=7)})
    assert made.inputs == ("photos", "more")
    assert (made.work.batch_size, made.work.num_actors) == (9, 2)
    assert made.search == SearchConfig(method="greedy", seed=7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inptu: x", "unknown setting 'inptu'; known: address, also"),
        ("search: {methd: greedy}", "unknown setting 'methd'"),
        ("batch_size: 0", "--batch-size must be at least 1, got 0"),
        ("batch_size: many", "batch_size: expected int | None, got 'many'"),
        ("show: many", "show: expected int, got 'many'"),
        ("also: more", "also: expected list, got 'more'"),
        ("[1, 2]", "expected settings by name, got list"),
        ("a: [", "job.yaml"),
        (None, "cannot be read"),
    ],
)
def test_a_faulty_file(tmp_path, capsys, text, message):
    path = tmp_path / "job.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as ended:
        settings("photos", "out", "--config", str(path))
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert message in " ".join((captured.err + captured.out).split())


@pytest.mark.parametrize(
    "argv",
    [
        ["photos"],
        ["photos", "out", "--batch-size", "0"],
        ["photos", "out", "--num-actors", "0"],
        ["photos", "out", "--max-error-share", "1.5"],
        ["photos", "out", "--overwrite", "--retry-errors"],
        ["photos", "out", "--search.beam-width", "0"],
        ["photos", "out", "--unknown"],
    ],
)
def test_faulty_flags_end_with_exit_code_2(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        settings(*argv)
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_is_for_people(capsys):
    with pytest.raises(SystemExit) as ended:
        settings("--help")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "INPUT OUTPUT" in text
    assert "None" not in text


def test_one_flag_can_be_looked_at_before_the_others():
    assert peek(["a", "b", "--model", "m", "--show", "3"], "model") == "m"
    assert peek(["a", "b", "--model=m"], "model") == "m"
    assert peek(["a", "b"], "model") is None
    assert peek(["a", "b", "--model"], "model") is None
    assert peek(["a", "--start-from", "m"], "start-from") == "m"
    assert peek(["a", "--start_from=m"], "start-from") == "m"


def test_one_setting_can_be_looked_at_in_the_settings_file(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("start_from: of_the_file\n")
    assert peek_setting(["--config", str(file)], "start-from") == "of_the_file"
    assert peek_setting(["--config", str(file), "--start-from", "of_the_flag"], "start-from") == "of_the_flag"
    assert peek_setting(["--config", str(file)], "model") is None
    assert peek_setting([], "start-from") is None


@pytest.mark.parametrize(
    ("flags", "warnings"),
    [
        (["--search.method", "greedy", "--search.beam-width", "5"],
         ["--search.beam-width is not used by greedy search"]),
        (["--search.method=greedy", "--search.beam_width=3", "--search.top-p=0.9"],
         ["--search.beam-width and --search.top-p are not used by greedy search"]),
        (["--search.method", "sample", "--search.length-penalty", "1", "--search.beam-width", "2"],
         ["--search.beam-width is not used by sampling",
          "--search.length-penalty is not used by sampling of one caption"]),
        (["--search.diversity-strength", "1"], ["--search.diversity-strength is not used by beam search in one group"]),
        (["--search.method", "greedy"], []),
        (["--search.beam-width", "5"], []),
        (["--quiet", "--search.method", "greedy", "--search.beam-width", "5"], []),
    ],
)  # fmt: skip
def test_search_settings_that_the_method_ignores_are_named(capsys, flags, warnings):
    of_checkpoint = SearchConfig(beam_width=5, length_penalty=0.6)  # not given by the user
    settings("photos", "out", *flags, defaults={"search": of_checkpoint})
    assert capsys.readouterr().err.splitlines() == [f"warning: {line}" for line in warnings]


def test_ignored_settings_of_a_file_are_named_too(capsys, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("search: {method: greedy, top_k: 5}\n")
    settings("photos", "out", "--config", str(path))
    assert capsys.readouterr().err == "warning: --search.top-k is not used by greedy search\n"
