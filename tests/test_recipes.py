"""The ablation of the training recipe: its rows, and the table from small trainings."""

import pytest

from experiments import recipes
from jaxreg.training.configs import CONFIGS, changed_fields
from jaxreg.training.loop import Interrupted, NonFiniteError
from tests.compilation_support import quickly_compiled
from tests.training_support import without_pictures, write_images


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


@quickly_compiled()
def test_the_command_trains_and_makes_the_table(tmp_path, capsys, monkeypatch):
    without_pictures(monkeypatch)
    monkeypatch.setattr(recipes, "WITHOUT", {n: recipes.WITHOUT[n] for n in ("all", "chord")})
    source = write_images(tmp_path, size=32)
    arguments = [f"--data={source}", f"--runs={tmp_path}/runs", f"--results={tmp_path}"]
    arguments += ["--pairs=512", "--hidden=4"]
    assert recipes.main(["recipes", *arguments, "--only=chord"]) == 0
    assert "not recorded, for all are not trained yet" in capsys.readouterr().err
    assert not (tmp_path / "tables").exists()
    assert recipes.main(["recipes", *arguments, "--only=all"]) == 0
    text = (tmp_path / "tables/recipes.md").read_text()
    assert text in capsys.readouterr().out
    assert "| the whole recipe | 2 |" in text
    assert "| chord of the angle in the loss | 2 |" in text
    assert "best constant answer" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("only", "message"), [("nothing", "there are all, constant_rate"), ("", "--only is empty")]
)
def test_refusals_are_one_line(only, message, capsys):
    assert recipes.main(["recipes", f"--only={only}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NonFiniteError("non-finite at step 3"), 1),
        (Interrupted(15, "SIGTERM: saved"), 143),
        (KeyboardInterrupt(), 130),
    ],
)
def test_a_training_that_ends_early_ends_the_command(error, status, tmp_path, monkeypatch, capsys):
    def train(config, folder):
        raise error

    monkeypatch.setattr(recipes, "train", train)
    assert recipes.main(["recipes", "--only=all", f"--runs={tmp_path}"]) == status
    assert str(error) in capsys.readouterr().err
