"""The notebook of examples/, run by a real kernel: stopped by its button, continued, to its end."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from example_scripts import EXAMPLES
from nbclient import NotebookClient
from pictures_on_disk import write_pictures

NOTEBOOK = EXAMPLES / "first_run.ipynb"
SUPPORT = Path(__file__).resolve().parents[1] / "support"
STOPPED_AT, STEPS = 2, 4
# What is smaller than in the notebook, and nothing else: pictures, model, length, what is drawn.
SETTINGS: dict[str, Any] = {
    "data.image_size": 64,
    "data.label": None,
    "data.workers": 2,
    "model.name": "convnextv2_speck",
    "model.decoder_dim": 8,
    "train.batch_size": 4,
    "train.steps": STEPS,
    "train.device": "cpu",
    "optim.warmup_steps": 1,
    "log.every_steps": 1,
    "log.num_pictures": 1,
    "evaluate.draws": 0,
}
# Holds the kernel in a step until the stop button is pressed, however slow or fast it is.
HOLD = """
import sys, time
from pathlib import Path
sys.path.insert(0, {support!r})
import real_runs

def hold(model):
    Path({reached!r}).touch()
    while not Path({pressed!r}).exists():
        time.sleep(0.01)

real_runs.before_step({step}, hold)
"""


def text_of(cell: Any) -> str:
    """Return what a cell has printed and shown as text."""
    texts = [output.get("text", "") for output in cell.outputs]
    texts += [output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "\n".join(texts)


def shown_by(cell: Any, kind: str) -> list[str]:
    """Return what a cell shows of a kind, such as image/png."""
    return [o["data"][kind] for o in cell.outputs if kind in o.get("data", {})]


async def execute(notebook: Any, folder: Path, reached: Path, pressed: Path) -> tuple[str, str]:
    """Run all cells, press stop in the one that trains, run that again; return what it said."""
    client = NotebookClient(
        notebook, kernel_name="python3", timeout=None, resources={"metadata": {"path": str(folder)}}
    )
    said: list[str] = []
    async with client.async_setup_kernel():
        for index, cell in enumerate(notebook.cells):
            running = asyncio.create_task(client.async_execute_cell(cell, index))
            if cell.id == "pretrain":
                while not reached.exists() and not running.done():
                    await asyncio.sleep(0.05)
                assert not running.done(), text_of(running.result())
                await client.km.interrupt_kernel()
                pressed.touch()
                said.append(text_of(await running))
                running = asyncio.create_task(client.async_execute_cell(cell, index))
                said.append(text_of(await running))
            await running
    return said[0], said[1]


def test_the_notebook_runs_is_stopped_and_continued_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a kernel has one of its own
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):  # nothing of it lands in a home
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    for seed, name in enumerate(("bright", "dark")):
        write_pictures(tmp_path / "pictures" / name, 24, channels=1, seed=seed)
    reached, pressed = tmp_path / "reached", tmp_path / "pressed"
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = {cell.id: cell for cell in notebook.cells}
    hold = HOLD.format(
        support=str(SUPPORT), reached=str(reached), pressed=str(pressed), step=STOPPED_AT
    )
    settings = f"PICTURES = 'pictures'\nSETTINGS = {SETTINGS!r}"
    cells["parameters"].source += f"\n{settings}\n{hold}"
    cells["probe"].source = cells["probe"].source.replace("labels=200", "labels=8")
    first, second = asyncio.run(execute(notebook, tmp_path, reached, pressed))

    assert f"SIGINT: stopped after step {STOPPED_AT}" in first
    assert "<fcmae.Run 'runs/notebook', not finished>" in first
    assert f"continuing after step {STOPPED_AT} of {STEPS}" in second
    assert "<fcmae.Run 'runs/notebook', finished>" in second
    lines = (tmp_path / "runs/notebook/metrics.jsonl").read_text().splitlines()
    assert [line["step"] for line in map(json.loads, lines) if "loss" in line] == [1, 2, 3, 4]
    assert "<iframe" in shown_by(cells["inspect"], "text/html")[0]
    assert shown_by(cells["loss"], "image/png")
    assert shown_by(cells["reconstruct"], "image/png")
    assert "torch.Size([48, 20])" in text_of(cells["embed"])
    assert "Balanced accuracy in %" in text_of(cells["probe"])
    assert int(text_of(cells["export"]).split()[-1]) > 10_000


def test_the_notebook_is_kept_without_outputs_and_with_the_path_of_the_start_page() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if cell.outputs or cell.execution_count] == []
    start = (EXAMPLES / "start.sh").read_text(encoding="utf-8")
    assert "fcmae pretrain --config quickstart" in start
    source = "\n".join(cell.source for cell in code)
    assert 'RECIPE = "quickstart"' in source
    path = re.findall(r"^fcmae (\w+)", start.partition("# [own]")[0], re.M)
    assert re.findall(r"\b(?:fcmae|run)\.(pretrain|embed|probe|export)\(", source) == path
