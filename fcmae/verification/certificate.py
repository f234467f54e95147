"""The certificate: claims, what was measured of each, and the table that is printed."""

import html
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fcmae.errors import writing
from fcmae.runs.durable import write_text

Status = Literal["holds", "FAILS", "not run", "shown"]


@dataclass(frozen=True)
class Line:
    """One claim.

    Attributes:
        claim: in words.
        measured: the figure; None if nothing was run.
        bound: the largest figure with which the claim holds; None if it is shown only.
        note: instead of the figure where nothing was run.
    """

    claim: str
    measured: float | None
    bound: float | None = None
    note: str = ""

    @property
    def status(self) -> Status:
        """Whether the claim holds; a figure that is not a number fails."""
        if self.measured is None:
            return "not run"
        if self.bound is None:
            return "shown"
        return "holds" if self.measured <= self.bound else "FAILS"


@dataclass(frozen=True)
class Certificate:
    """What was verified, and how each claim came out.

    Attributes:
        subject: the model in words, by topic.
        lines: in the order of the table.
    """

    subject: dict[str, str]
    lines: list[Line] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether no line fails."""
        return all(line.status != "FAILS" for line in self.lines)

    def to_plain(self) -> dict[str, Any]:
        """Return what --json prints: figures that are not finite are texts."""
        lines = []
        for line in self.lines:
            plain = asdict(line) | {"status": line.status}
            if line.measured is not None and not abs(line.measured) < float("inf"):
                plain["measured"] = str(line.measured)
            lines.append(plain)
        return {"holds": self.holds, "subject": self.subject, "lines": lines}

    def to_text(self) -> str:
        """Return the table."""
        rows = [("claim", "measured", "bound", "")]
        rows += [(line.claim, _figure(line), _bound(line), line.status) for line in self.lines]
        first, second, third = (max(len(row[column]) for row in rows) for column in range(3))
        header, *table = (
            f"{row[0]:<{first}}  {row[1]:>{second}}  {row[2]:>{third}}  {row[3]}".rstrip()
            for row in rows
        )
        failed = sum(line.status == "FAILS" for line in self.lines)
        held = sum(line.status == "holds" for line in self.lines)
        verdict = (
            f"{failed} of {held + failed} claims fail." if failed else f"All {held} claims hold."
        )
        parts = [
            "Sparsity certificate",
            *(f"{topic}: {words}" for topic, words in self.subject.items()),
            "",
            header,
            "-" * max(map(len, table)),
            *table,
            "",
            *(f"{line.claim}: {line.note}" for line in self.lines if line.note),
            verdict,
        ]
        return "\n".join(parts)

    def save(self, output: str | os.PathLike[str]) -> Path:
        """Write the table, or with the suffix .json its figures; return the file.

        Raises:
            ConfigError: the file cannot be written.
        """
        target = Path(output)
        is_json = target.suffix == ".json"
        text = json.dumps(self.to_plain(), indent=2) if is_json else self.to_text()
        with writing(f"output: {os.fspath(output)!r}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_text(target, text + "\n")
        return target

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.to_text())}</pre>"


def _figure(line: Line) -> str:
    if line.measured is None:
        return "-"
    return "0" if line.measured == 0 else f"{line.measured:.1e}"


def _bound(line: Line) -> str:
    if line.bound is None:
        return "-"
    return "exactly 0" if line.bound == 0 else f"{line.bound:.0e}"
