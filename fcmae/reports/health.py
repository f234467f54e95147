"""The label-free health of runs, where their logs have it."""

from collections.abc import Mapping, Sequence
from typing import Any

from fcmae.evaluation.health.collapse import collapse_figure, last_diversity
from fcmae.evaluation.health.verdict import verdict
from fcmae.reports import figures
from fcmae.reports.document import Block, Bullets, Picture
from fcmae.reports.records import Record

LOSS = "health/loss"
PANEL_FILE = "health.png"
SHOWN = {
    "health/rank_me": "RankMe of held-out features",
    "health/diversity_stage_3": "feature diversity, last stage",
}


def curve(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Return steps and values of one number in metrics.jsonl."""
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [float(step) for step, _ in points], [float(value) for _, value in points]


def health_blocks(grouped: Mapping[str, Sequence[Record]], done: Sequence[Record]) -> list[Block]:
    """Return curves of the measures of all cells and every finished cell's verdict."""
    blocks: list[Block] = []
    for name, title in SHOWN.items():
        curves = {
            setting: [curve(record.lines, name) for record in records]
            for setting, records in grouped.items()
        }
        if any(steps for seeds in curves.values() for steps, _ in seeds):
            data = figures.draw_lines(curves, y_name=title)
            file = name.replace("/", "-") + "-curve.svg"
            caption = f"{title} over the training; line styles are seeds."
            blocks.append(Picture(file, data, caption))
    layers = {
        setting: [last_diversity(record.lines) for record in records]
        for setting, records in grouped.items()
    }
    figure = collapse_figure(layers)
    if figure is not None:
        caption = "Diversity of channels in every layer at the last check; thin lines are seeds."
        blocks.append(Picture("diversity-by-layer.svg", figures.to_svg(figure), caption))
    if blocks:
        lines = [
            f"{record.cell.title}: {verdict(record.lines, int(record.result['steps']))}"
            for record in done
        ]
        blocks.append(Bullets(lines))
    return blocks
