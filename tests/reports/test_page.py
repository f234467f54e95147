"""Values that commands return: their page in a frame, their table by columns, their files."""

from __future__ import annotations

import html
import math
import re
from pathlib import Path

import pytest

from fcmae.errors import ConfigError
from fcmae.reports.document import Document, Section, Text
from fcmae.reports.page import columns_of
from fcmae.reports.writing import Report

TABLE = 'cell,state,score,note\n0012,done,1.5e-3,"a, b"\n7,failed,nan,\n'


def test_a_notebook_gets_the_whole_page_in_a_frame_that_runs_no_script() -> None:
    page = Document('A & "B"', "lead", [Section("One", [Text("<script>alert('x')</script>")])])
    shown = Report(Path("runs"), "title", page=page)._repr_html_()
    assert shown.startswith("<iframe ")
    assert 'sandbox=""' in shown
    inside = re.search(r'srcdoc="([^"]*)"', shown)
    assert inside is not None
    whole = html.unescape(inside[1])
    assert whole.startswith("<!DOCTYPE html>")
    assert "<title>A &amp; &quot;B&quot;</title>" in whole
    assert "&lt;script&gt;" in whole


def test_columns_are_figures_where_they_can_be_and_names_stay_names() -> None:
    columns = columns_of(TABLE)
    assert columns["cell"] == ["0012", 7.0]
    assert columns["state"] == ["done", "failed"]
    assert columns["score"][0] == 0.0015
    assert math.isnan(float(columns["score"][1]))
    assert columns["note"] == ["a, b", ""]
    assert columns_of("") == {}


def test_a_report_without_a_page_of_its_own_has_sentences_and_table(tmp_path: Path) -> None:
    found = Report(tmp_path, "Did it help?", ("No.", "One seed."), TABLE)
    page, text, table = found.save(tmp_path / "saved")
    assert "<li>One seed.</li>" in page.read_text()
    assert "| 0012 " in text.read_text()
    assert table.read_text() == TABLE


def test_a_report_of_what_was_stopped_at_once_says_so(tmp_path: Path) -> None:
    found = Report(tmp_path, "Not finished", stopped_by="SIGINT")
    assert found.columns == {}
    assert "Nothing is done yet." in found._repr_html_()


def test_a_report_that_cannot_be_saved_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        Report(tmp_path, "title", ("said",), TABLE).save(tmp_path / "file" / "below")
