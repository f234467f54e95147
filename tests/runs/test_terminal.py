"""What a run shows while it works goes to stderr, whole, and shares no lock between processes."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from collections.abc import Iterator

import pytest

from fcmae.runs.plain_lines import FIRST_SECONDS, PlainLines
from fcmae.runs.terminal import Bar, numbered, progress_bar, say, tell


class Screen(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        """Be one."""
        return True


def look_on(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Make stderr a terminal for the rest of a test; pytest has its own before the test begins."""
    found = Screen()
    monkeypatch.setattr(sys, "stderr", found)
    return found


def test_a_terminal_gets_a_bar_with_sentences_above_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = look_on(monkeypatch)
    for item in progress_bar("ab", unit="letter", total=5, done=3, title="reading"):
        say(f"at {item}.")
        tell("on stdout.")
    err = screen.getvalue()
    assert re.search(r"reading: 100%.* 5/5 ", err)
    assert [line for line in re.split(r"[\r\n]+", err) if line.startswith("fcmae")] == [
        "fcmae: at a.",
        "fcmae: at b.",
    ]
    assert capsys.readouterr().out == "on stdout.\non stdout.\n"


def test_what_is_mostly_brief_draws_nothing_while_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = look_on(monkeypatch)
    assert list(progress_bar("ab", unit="letter", is_brief=True)) == ["a", "b"]
    assert screen.getvalue() == ""


def test_bars_begin_with_the_number_of_their_run(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = look_on(monkeypatch)
    with numbered(3, 12, "from scratch, seed 0"):
        list(progress_bar("ab", unit="letter", title="training"))
    list(progress_bar("ab", unit="letter", title="other"))
    err = screen.getvalue()
    assert "fcmae: run 3 of 12: from scratch, seed 0.\n" in err
    assert re.search(r"run 3 of 12, training: 100%.* 2/2 ", err)
    assert re.search(r"[\r\n]other: 100%", err)


def test_without_a_terminal_brief_work_says_nothing_and_draws_no_bar(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(progress_bar([1, 2], unit="step", title="training")) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_other_processes_than_the_first_say_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = look_on(monkeypatch)
    assert list(progress_bar([1, 2], unit="step", total=2, is_shown=False)) == [1, 2]
    monkeypatch.setenv("RANK", "1")
    with numbered(1, 2, "second"):
        assert list(progress_bar([1, 2], unit="step")) == [1, 2]
    assert screen.getvalue() == ""


def ticking(seconds: float) -> Iterator[float]:
    """Yield the time at each look at a clock, so many seconds apart."""
    now = 0.0
    while True:
        yield now
        now += seconds


def told_by(
    count: int, seconds: float, total: int | None, done: int = 0, unit: str = "file"
) -> list[str]:
    clock = ticking(seconds)
    told: list[str] = []
    lines = PlainLines(
        range(count), told.append, title="reading", unit=unit, total=total, done=done,
        clock=lambda: next(clock),
    )  # fmt: skip
    assert list(lines) == list(range(count))
    return told


def test_lines_tell_how_many_how_long_and_how_much_is_left() -> None:
    told = told_by(count=300, seconds=1.0, total=400, done=100)
    assert told[0] == "reading: 102 of 400 files (26 %) in 2 s, about 5 min left."
    assert told[-1] == "reading: 400 of 400 files (100 %) in 5 min."
    assert len(told) < 15  # the longer, the fewer
    assert told_by(count=9, seconds=3.0, total=9, unit="batch")[0].startswith(
        "reading: 1 of 9 batches"
    )


def test_the_first_line_comes_after_two_seconds_and_days_have_one_each_ten_minutes() -> None:
    assert told_by(count=3, seconds=FIRST_SECONDS / 4, total=3) == []
    told = told_by(count=24 * 60, seconds=60.0, total=None)
    assert told[0] == "reading: 1 file in 60 s."
    assert told[-1] == "reading: 1,440 files in 24.0 h."
    assert len(told) < 6 * 24 + 15


def test_work_that_is_over_before_anything_was_told_needs_no_line() -> None:
    assert told_by(count=1, seconds=60.0, total=1) == []
    assert told_by(count=2, seconds=60.0, total=2)[0].startswith("reading: 1 of 2 files (50 %)")


def test_a_postfix_stands_behind_the_lines() -> None:
    clock, told = ticking(3.0), []
    with PlainLines(
        (), told.append, title="training", unit="step", total=9, clock=lambda: next(clock)
    ) as lines:
        lines.set_postfix_str("loss 0.9")
        lines.update()
    assert told == ["training: 1 of 9 steps (11 %) in 3 s, about 24 s left; loss 0.9."]


def test_the_lock_of_bars_is_one_of_threads_that_no_killed_process_takes_along() -> None:
    assert type(Bar.get_lock()) is type(threading.RLock())


def test_bars_start_no_thread_that_a_fork_would_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    look_on(monkeypatch)
    before = len(os.listdir("/proc/self/task"))
    for _ in progress_bar("ab", unit="letter"):
        assert len(os.listdir("/proc/self/task")) == before
