"""What a run shows while it works goes to stderr, whole, and shares no lock between processes."""

from __future__ import annotations

import re
import threading

import pytest
from tqdm import tqdm

from fcmae.runs.terminal import progress_bar, say


def test_sentences_and_the_bar_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    for item in progress_bar("ab", unit="letter", total=5, done=3, title="reading"):
        say(f"at {item}.")
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(r"reading: 100%.* 5/5 ", err)
    assert [line for line in re.split(r"[\r\n]+", err) if line.startswith("fcmae")] == [
        "fcmae: at a.",
        "fcmae: at b.",
    ]


def test_a_bar_that_is_not_shown_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar([1, 2], unit="step", total=2, is_shown=False)) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_the_lock_of_bars_is_one_of_threads_that_no_killed_process_takes_along() -> None:
    assert type(tqdm.get_lock()) is type(threading.RLock())
