"""What is said of a recipe: shares, passes and rates by hand, and nothing where nothing is odd."""

from pathlib import Path
from typing import Any

import pytest
from settled import settled

from fcmae.pretraining.recipe import peak_rate, remarks
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import parse
from fcmae.settings.sections import OptimConfig, TrainConfig
from fcmae.training.remarks import length_remarks, rate_remarks, warmup_remarks
from fcmae.training.schedule import Schedule

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def schedule(steps: int, batch: int = 128, **optim: Any) -> Schedule:
    settings: dict[str, Any] = {"base_lr": 1.5e-4, "warmup_steps": 0, "schedule": "cosine", **optim}
    return Schedule(TrainConfig(steps=steps), OptimConfig(**settings), 480, batch)


def test_a_long_warm_up_is_told_with_its_share_and_a_usual_one() -> None:
    assert warmup_remarks(schedule(400, warmup_steps=107)) == [
        "warm-up takes 27 % of the run (107 of 400 steps), and 5 to 10 % are usual: "
        "optim.warmup_steps 20."
    ]
    assert warmup_remarks(schedule(400, warmup_steps=60)) == []


def test_few_steps_are_told_with_the_pictures_and_how_often_each_is_seen() -> None:
    (said,) = length_remarks(schedule(400), 480)
    assert said.startswith("400 steps are few for 480 pictures: each is seen 107 times")
    (said,) = length_remarks(schedule(400), 48_000)
    assert "each is seen 1.1 times" in said
    assert length_remarks(schedule(4000), 48_000) == []


def test_few_steps_of_a_cosine_are_told_with_the_schedule_that_can_be_extended() -> None:
    (said,) = length_remarks(schedule(400), 480)
    assert said.endswith("with optim.schedule wsd a finished run can be made longer).")
    (said,) = length_remarks(schedule(400, schedule="wsd"), 480)
    assert said.endswith("(train.steps; a finished run can be made longer).")


def test_few_passes_over_many_pictures_are_told() -> None:
    assert length_remarks(schedule(4000), 200_000) == [
        "4,000 steps of 128 see each of the 200,000 pictures 2.6 times: more passes cost time only."
    ]


@pytest.mark.parametrize(("base_lr", "words"), [(1.5e-4, "8 times below"), (2e-2, "17 times abo")])
def test_a_rate_far_from_the_rule_is_told_with_the_rules(base_lr: float, words: str) -> None:
    (said,) = rate_remarks(schedule(400, base_lr=base_lr), peak_rate(128))
    assert words in said
    assert said.endswith("the rule's 0.0006 for 128 images: optim.base_lr 0.0012.")


@pytest.mark.parametrize("base_lr", [0.0, 1e-3, 3e-3])
def test_a_rate_near_the_rule_and_one_of_0_are_not_told(base_lr: float) -> None:
    assert rate_remarks(schedule(400, base_lr=base_lr), peak_rate(128)) == []


def test_the_papers_own_recipe_on_its_own_data_has_nothing_odd() -> None:
    config = CONFIGS / "pretrain" / "atto.yaml"
    words = ["--config", str(config), "--data.path", "x"]
    found = settled(parse(PretrainConfig, words, prog="fcmae pretrain"))
    assert remarks(found, 1_281_167, 4096) == []


def test_the_shipped_recipe_for_small_sets_on_400_steps_is_told() -> None:
    words = ["--data.path", "x", "--run.dir", "y", "--train.steps", "400"]
    words += ["--optim.warmup_steps", "107", "--optim.base_lr", "1.5e-4"]
    found = settled(parse(PretrainConfig, words, prog="fcmae pretrain"))
    starts = [said.split(" ")[0] for said in remarks(found, 480, 128)]
    assert starts == ["warm-up", "400", "the"]
