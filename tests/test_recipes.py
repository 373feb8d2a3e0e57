"""The ablation of the training recipe: its rows, and the table from small trainings."""

import pytest

from experiments import recipes
from jaxreg.training.configs import CONFIGS, changed_fields
from tests.training_support import write_images


@pytest.mark.parametrize("name", recipes.WITHOUT)
def test_every_row_sees_as_many_pairs_and_changes_one_thing(name):
    whole = recipes.recipe("all", 25_600, 128, ["cifar10"], 0)
    config = recipes.recipe(name, 25_600, 128, ["cifar10"], 0)
    assert config.steps * config.batch_size == 25_600
    changes = {line.partition(":")[0] for line in changed_fields(whole, config)}
    assert bool(changes) == (name != "all")
    assert len(changes - {"steps", "warmup_steps"}) <= 1
    assert name in recipes.LABELS
    assert whole.learning_rate == CONFIGS["lstm512_cifar10"].learning_rate


def test_the_command_trains_and_makes_the_table(tmp_path, capsys):
    source = write_images(tmp_path, size=32)
    arguments = [f"--data={source}", f"--runs={tmp_path}/runs", f"--results={tmp_path}"]
    arguments += ["--pairs=512", "--hidden=4", "--only=all,chord"]
    assert recipes.main(["recipes", *arguments]) == 0
    text = (tmp_path / "tables/recipes.md").read_text()
    assert text in capsys.readouterr().out
    assert "| the whole recipe | 2 |" in text
    assert "| chord of the angle in the loss | 2 |" in text
    assert "best constant answer" in text
    assert str(tmp_path) not in text
    assert recipes.main(["recipes", "--only=nothing"]) == 2
    assert "there are all, constant_rate" in capsys.readouterr().err
