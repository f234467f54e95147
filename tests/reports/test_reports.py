"""Reports: what they say, and pages that need nothing else and hold together."""

from __future__ import annotations

import base64
import csv
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_material import HOSTILE, RATIOS, make_ablation
from tiny_run import make_run

from fcmae.__main__ import main
from fcmae.data.recorded import fix_images
from fcmae.errors import DONE, MISTAKE
from fcmae.machine.cost import flops_per_image
from fcmae.reports.ablation import ablation_csv, ablation_document
from fcmae.reports.document import Bullets, Document, Picture, Section, Table, Text
from fcmae.reports.figures import draw_means, image_rows
from fcmae.reports.html import to_html
from fcmae.reports.markdown import pictures_of, to_markdown
from fcmae.reports.verdicts import sentences
from fcmae.reports.writing import write_document
from fcmae.runs.loading import load_run_config
from fcmae.runs.metrics import MetricsLog

VOID = {"meta", "img", "br", "hr", "link", "input"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


def steep(ratio: float, seed: int) -> float:
    """A score that falls by 20 points from the lowest ratio to the highest, and shifts by seed."""
    return 80.0 - 30 * ratio + 3 * seed + 0.1 * ((round(10 * ratio) * 7 + seed * 3) % 5)


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        self.references += [named[key] or "" for key in ("src", "href", "srcset") if key in named]
        if tag == "img":
            self.images.append(named)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    found = make_ablation(folder, steep, failing=(0.8, 1))
    return write_document(ablation_document(found), ablation_csv(found), folder)[0]


def test_the_page_is_well_formed_and_refers_to_nothing_outside(page_file: Path) -> None:
    text = page_file.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.references
    assert all(reference.startswith("data:image/") for reference in page.references)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "@import" not in text
    assert "url(" not in text
    assert 'name="viewport"' in text
    for image in page.images:
        assert image["alt"]


def test_the_pages_pictures_are_pictures_that_refer_to_nothing_outside(page_file: Path) -> None:
    kinds = set()
    for reference in Page(page_file.read_text(encoding="utf-8")).references:
        kind, _, code = reference.partition(";base64,")
        data = base64.b64decode(code, validate=True)
        kinds.add(kind)
        if kind == "data:image/png":
            assert Image.open(io.BytesIO(data)).width > 100
        else:
            text = data.decode()
            assert re.findall(r"<image|<script", text) == []
            assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', text))
    assert kinds == {"data:image/png", "data:image/svg+xml"}


def test_what_a_user_wrote_is_shown_as_text(page_file: Path) -> None:
    text = page_file.read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert "&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;" in text


def test_sentences_say_which_settings_differ_and_by_how_much(tmp_path: Path) -> None:
    said = sentences(make_ablation(tmp_path, steep))
    assert said[0].startswith("kNN: highest with ratio 0.15 (0.167 hidden)")
    assert "ratio 0.15 (0.167 hidden) is better than ratio 0.5 (0.500 hidden) by " in said[1]
    assert "ratio 0.8 (0.833 hidden) is worse than ratio 0.5 (0.500 hidden) by " in said[1]
    start = "kNN: compared with an untrained encoder, pretraining by the default helps by 5.1 +- "
    assert said[2].startswith(start)
    assert said[3].startswith("The measured time of a step falls with every ratio: 135 ms at 0.167")


def test_sentences_claim_nothing_that_the_noise_explains(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = {(ratio, seed): float(rng.normal()) for ratio in RATIOS for seed in (0, 1)}
    said = sentences(
        make_ablation(tmp_path, lambda ratio, seed: 70 + noise[ratio, seed], baseline=70.0)
    )
    assert "no setting differs from ratio 0.5 (0.500 hidden) beyond the noise of 2 seeds" in said[1]
    assert "pretraining by the default makes no difference beyond the noise of 2 seeds" in said[2]


def test_pretraining_that_hurts_is_said_to_hurt(tmp_path: Path) -> None:
    said = sentences(make_ablation(tmp_path, steep, baseline=90.0))
    assert any("pretraining by the default hurts by " in sentence for sentence in said)


def test_one_seed_is_told_to_say_nothing_about_noise(tmp_path: Path) -> None:
    said = sentences(make_ablation(tmp_path, steep, seeds=(0,)))
    assert said[0].startswith("One seed: nothing can be said about noise")
    assert not any("beyond" in sentence for sentence in said)


def test_a_failed_cell_is_listed_and_left_out_of_the_means(tmp_path: Path) -> None:
    found = make_ablation(tmp_path, steep, failing=(0.8, 1))
    document = ablation_document(found)
    failed = next(section for section in document.sections if section.title.startswith("Failed"))
    assert failed.blocks == [Bullets([f"mask.ratio 0.8, train.seed 1: failed: {HOSTILE}"])]
    table = next(
        block
        for section in document.sections
        if section.title == "Every setting"
        for block in section.blocks
        if isinstance(block, Table)
    )
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert rows["ratio 0.8 (0.833 hidden)"]["seeds done"] == "1 of 2"
    assert rows["ratio 0.65 (0.667 hidden)"]["seeds done"] == "2 of 2"
    assert rows["ratio 0.5 (0.500 hidden)"]["kNN: less the default"] == "default"
    assert rows["ratio 0.15 (0.167 hidden)"]["kNN: less the default"].endswith("beyond noise")
    assert rows["ratio 0.15 (0.167 hidden)"]["ms per step"] == "135"
    assert rows["ratio 0.15 (0.167 hidden)"]["GFLOP"] == "850"
    assert rows["untrained"]["kNN"].startswith("61.5")


def test_an_unfinished_ablation_has_a_report(tmp_path: Path) -> None:
    found = make_ablation(tmp_path, steep, ratios=(0.5,), seeds=(0,), failing=(0.5, 0))
    text = to_markdown(ablation_document(found))
    assert "0 of them done" in text
    assert "## In short" not in text
    Page(to_html(ablation_document(found)))


def test_the_csv_is_read_back(tmp_path: Path) -> None:
    found = make_ablation(tmp_path, steep, failing=(0.8, 1))
    rows = list(csv.DictReader(io.StringIO(ablation_csv(found))))
    assert len(rows) == 12
    first, last, untrained = rows[0], rows[9], rows[10]
    assert float(first["kNN"]) == pytest.approx(steep(0.15, 0), abs=1e-3)
    assert first["effective_mask_ratio"] == "0.166667"
    assert (last["state"], last["kNN"], last["failure"]) == ("failed", "", HOSTILE)
    assert (untrained["kind"], untrained["mask.ratio"]) == ("untrained", "")


def test_markdown_names_its_pictures_as_files_that_exist(page_file: Path) -> None:
    text = page_file.with_suffix(".md").read_text(encoding="utf-8")
    named = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert len(named) > 5
    assert all((page_file.parent / name).stat().st_size > 100 for name in named)


def test_a_bar_in_a_table_does_not_end_its_cell() -> None:
    document = Document("a", "b", [Section("c", [Table(["x", "y"], [["1|2", "3"]])])])
    assert "| 1\\|2 | 3 |" in to_markdown(document)
    assert pictures_of(document) == []


def test_a_section_without_blocks_is_not_written() -> None:
    document = Document("a", "b", [Section("empty", []), Section("full", [Text("x +- y")])])
    assert "empty" not in to_html(document)
    assert "x&nbsp;&plusmn;&nbsp;y" in to_html(document)


def test_pictures_of_images_keep_every_pixel_of_small_ones() -> None:
    images = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
    sheet = np.array(Image.open(io.BytesIO(image_rows([images, 255 - images]))))
    assert sheet.shape == (4 + 4 + 4, 6 + 4 + 6, 3)
    np.testing.assert_array_equal(sheet[:4, :6], images[0])
    np.testing.assert_array_equal(sheet[8:, 10:], 255 - images[1])
    large = np.zeros((1, 320, 640, 3), dtype=np.uint8)
    assert Image.open(io.BytesIO(image_rows([large]))).size == (160, 80)


def test_the_same_figure_is_the_same_file() -> None:
    tables = {"": {0.3: {0: 1.0, 1: 2.0}, 0.6: {0: 2.0}}}
    first, second = (draw_means(tables, x_name="x", y_name="y") for _ in range(2))
    assert first == second


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    make_run(folder)
    log = MetricsLog(folder, tensorboard=False)
    for step in range(1, 8):
        log.log(step, {"loss": 1 - 0.01 * step, "images_per_second": 50.0})
    log.close()
    return folder


def test_a_single_run_has_a_report(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_folder / "scores.txt").write_text(
        "              kNN         linear\npretrained   80.0 +- 1.0   90.0 +- 2.0\n"
        "untrained    70.0 +- 1.0   75.0 +- 2.0\nBalanced accuracy in %.\n"
        "kNN: pretrained beats untrained by 10.0 +- 1.5 points.\n"
    )
    assert main(["report", str(run_folder)]) == DONE
    listed = capsys.readouterr().out.split()
    assert listed == [str(run_folder / f"report.{suffix}") for suffix in ("html", "md", "csv")]
    text = (run_folder / "report.md").read_text()
    assert "convnextv2_atto, 7 steps" in text
    assert (
        "Training loss 0.9300 (mean of the last 1 of 7 steps), 0.9900 at the start (mean of the"
        in text
    )
    assert "1280 ms per step of 64 images" in text
    in_short = text.partition("## In short")[2].partition("##")[0]
    assert "frozen features, pretrained: kNN 80.0 +- 1.0 %, linear 90.0 +- 2.0 %" in in_short
    assert "- kNN: pretrained beats untrained by 10.0 +- 1.5 points." in in_short
    assert "| pretrained | 80.0 +- 1.0 | 90.0 +- 2.0 |" in text
    assert "## Health without labels" not in text
    page = Page((run_folder / "report.html").read_text())
    assert page.open == []
    assert "step,loss,images_per_second" in (run_folder / "report.csv").read_text()


def test_a_report_says_what_stands_out_and_how_the_run_is_made_longer(run_folder: Path) -> None:
    (run_folder / "images.jsonl").write_text("".join(f'"{n}.png"\n' for n in range(480)))
    log = MetricsLog(run_folder, resumed_step=7, tensorboard=False)
    for step, loss in ((3, 0.9), (5, 0.8), (7, 0.7)):
        log.log(step, {"health/loss": loss, "epoch": step * 128 / 480})  # two processes of 64
    log.close()
    assert main(["report", str(run_folder)]) == DONE
    in_short = (run_folder / "report.md").read_text().partition("## In short")[2]
    assert "- 7 steps are few for 480 pictures: each is seen 1.9 times" in in_short
    assert "the rule's 0.0006 for 128 images: optim.base_lr 0.0012." in in_short
    assert f"For that: fcmae pretrain --config {run_folder / 'config.yaml'} --train" in in_short


def test_the_steps_of_several_processes_are_counted_whole(run_folder: Path) -> None:
    log = MetricsLog(run_folder, resumed_step=0, tensorboard=False)
    several = {"images_per_second": 1600.0, "effective_batch": 512, "processes": 8}
    for step in range(1, 8):
        log.log(step, {"loss": 0.5, **several})
    log.close()
    assert main(["report", str(run_folder)]) == DONE
    text = (run_folder / "report.md").read_text()
    assert "320 ms per step of 512 images in 8 processes together, 2 s of training" in text
    config = load_run_config(run_folder)
    total = flops_per_image(config) * 512 * 7
    assert f"{total / 1e9:.3g} GFLOP in all" in text


def test_images_that_cells_were_trained_on_are_said_to_be(tmp_path: Path) -> None:
    found = make_ablation(tmp_path, lambda ratio, seed: 80.0)
    text = to_markdown(ablation_document(found))
    assert "No cell was trained on these images." in text
    images = found.split.test
    fix_images(
        found.records[0].cell.folder / "images.jsonl",
        images.select([0]),
        is_continued=False,
        report=print,
    )
    text = to_markdown(ablation_document(found))
    assert "No cell was trained on these images." not in text
    assert "1 of the 2 images that score the cells are among those that cells were" in text


def test_the_loss_of_a_report_is_a_mean_and_not_that_of_one_step(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    log = MetricsLog(tmp_path / "run", tensorboard=False)
    for step, loss in ((1, 2.0), (10, 1.0), *((10 * n, 0.5) for n in range(2, 20)), (191, 9.0)):
        log.log(step, {"loss": loss, "images_per_second": 50.0})
    log.close()
    assert main(["report", str(tmp_path / "run")]) == DONE
    text = (tmp_path / "run" / "report.md").read_text()
    # A line holds the mean since the one before: (1 x 9 + 10 x 0.5) / 11 and (1 x 2 + 9 x 1) / 10.
    assert (
        "1.2727 (mean of the last 11 of 191 steps), 1.1000 at the start (mean of the first 10)."
        in text
    )


def test_health_appears_when_the_run_has_it(run_folder: Path) -> None:
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "health/rank_me": 12.25, "health/diversity_by_layer": [1, 2]}\n')
    Image.new("RGB", (400, 300)).save(run_folder / "health.png")
    assert main(["report", str(run_folder)]) == DONE
    text = (run_folder / "report.md").read_text()
    assert "## Health without labels" in text
    assert "| health/rank_me | 12.25 |" in text
    assert "diversity_by_layer |" not in text
    assert "report_pictures/health.png" in text


def test_a_report_may_be_written_elsewhere(run_folder: Path, tmp_path: Path) -> None:
    assert main(["report", str(run_folder), "--output", str(tmp_path / "copy")]) == DONE
    assert (tmp_path / "copy" / "report.html").is_file()
    assert not (run_folder / "report.html").exists()


def test_mistakes_are_one_sentence(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path / "absent")]) == MISTAKE
    assert "run folder: " in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    words = ["report", str(run_folder), "--output", str(tmp_path / "file" / "x")]
    assert main(words) == MISTAKE
    assert "cannot be written" in capsys.readouterr().err


PROBE = """<script>
addEventListener("load", () => {
  const broken = [...document.images].filter(image => !image.naturalWidth).length;
  document.querySelectorAll("details").forEach(item => { item.open = true; });
  const root = document.documentElement;
  const wide = [...document.querySelectorAll("body *")].filter(
    item => item.getBoundingClientRect().right > root.clientWidth + 1).length;
  document.body.innerHTML = `FOUND ${innerWidth} ${root.scrollWidth} ${wide} ${broken}`;
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_nothing_overflows_and_every_picture_loads(
    page_file: Path, tmp_path: Path, width: int
) -> None:
    assert CHROMIUM is not None
    probed = tmp_path / "probed.html"
    # In a frame of the wanted width: a browser window has a least width of its own.
    inner = page_file.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>")
    (tmp_path / "inner.html").write_text(inner, encoding="utf-8")
    probed.write_text(
        f'<body style="margin:0"><iframe src="inner.html" width="{width}" height="900" '
        'style="border:0" onload="setTimeout(() => { document.title = '
        'this.contentDocument.body.textContent; }, 300)"></iframe></body>'
    )
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--allow-file-access-from-files"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--virtual-time-budget=4000", "--window-size=1400,1000", "--dump-dom"),
            probed.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    found = re.search(r"<title>FOUND (\d+) (\d+) (\d+) (\d+)</title>", done.stdout)
    assert found, done.stdout[-500:] + done.stderr[-500:]
    inner_width, scroll_width, num_wide, num_broken = map(int, found.groups())
    assert inner_width == width
    assert scroll_width <= width
    assert (num_wide, num_broken) == (0, 0)


def test_picture_names_are_unique(tmp_path: Path) -> None:
    names = [item.name for item in pictures_of(ablation_document(make_ablation(tmp_path, steep)))]
    assert len(set(names)) == len(names)
    assert isinstance(Picture("a.svg", b"", "a"), Picture)
