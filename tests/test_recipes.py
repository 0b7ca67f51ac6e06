"""What a recipe may say, what docs/recipes.md says about it, and who can name it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from commands import run_cli

from kerasnet import schema
from kerasnet.config import new_run, remark_on_schedule, resolve
from kerasnet.document import DocumentError, read
from kerasnet.registry import load_registry
from kerasnet.tune import space as spaces

RECIPE = load_registry().recipes["small"].model_dump()
DOC = Path(__file__).parents[1] / "docs" / "recipes.md"
TEXT = DOC.read_text()


def models(annotation: Any) -> list[type[schema.Strict]]:
    """Return the document classes in an annotation."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, schema.Strict) else []
    return [found for part in get_args(annotation) for found in models(part)]


def fields(of: type[schema.Strict]) -> set[str]:
    """Return the names of all that a document class may say, and of its parts."""
    found = set()
    for name, field in of.model_fields.items():
        found |= {name}.union(*(fields(part) for part in models(field.annotation)))
    return found


def test_the_page_names_every_field_of_a_recipe():
    code = " ".join(re.findall(r"`([^`\n]+)`", TEXT)) + " ".join(
        re.findall(r"```.*?```", TEXT, re.S)
    )
    named = set(re.findall(r"\w+", code))
    assert fields(schema.Recipe) - named - {"learning_rate"} == set()


def test_the_page_lists_every_recipe():
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| (\d+, \d+) \|", TEXT, re.MULTILINE))
    known = load_registry().recipes
    assert rows == {name: f"{r.epochs}, {r.batch_size}" for name, r in known.items()}


@pytest.mark.parametrize(
    "schedule", [{"type": "cosine", "warmup": 5}, {"type": "one_cycle", "peak": 1}]
)
def test_a_rate_that_never_comes_down_is_refused(schedule):
    with pytest.raises(ValueError, match="leaves no time to come down again"):
        schema.Recipe.model_validate(RECIPE | {"schedule": schedule})
    schema.Recipe.model_validate(RECIPE | {"schedule": schedule | {"unit": "epoch"}})


def test_steps_that_never_come_are_refused():
    steps = {"type": "step", "unit": "fraction", "every": 20, "factor": 0.3}
    with pytest.raises(ValueError, match=r"20 of the whole training: .* would never change"):
        schema.Recipe.model_validate(RECIPE | {"schedule": steps})
    schema.Recipe.model_validate(RECIPE | {"schedule": steps | {"unit": "epoch"}})


@pytest.mark.parametrize("schedule", ["{type: cosine, warmup: 4", "{type: one_cycle, peak: 4"])
@pytest.mark.parametrize(("epochs", "rises"), [(4, True), (5, False)])
def test_a_rate_that_only_rises_is_remarked_upon(tmp_path, schedule, epochs, rises):
    file = tmp_path / "mine.yaml"
    file.write_text(f"recipes: {{mine: {{extends: digits, schedule: {schedule}, unit: epoch}}}}}}")
    options = {"recipe": "mine", "dataset": "digits", "epochs": epochs}
    config = new_run("resnet8", options, load_registry(str(file)))
    assert ("the learning rate only rises" in remark_on_schedule(config)) == rises


def test_the_recipes_of_the_ablation_differ_in_one_thing():
    known = load_registry(str(DOC.with_name("ablation.yaml"))).recipes
    recipes = {name: r for name, r in known.items() if name.startswith("ablation")}
    assert len(recipes) == 23
    plain = {name: r.model_dump(exclude={"description"}) for name, r in recipes.items()}
    beside = dict.fromkeys(set(plain) - {"ablation"}, "ablation")
    beside["ablation_no_warmup"] = "ablation_cosine"
    found = {name: changed(plain[other], plain[name]) for name, other in beside.items()}
    # Another optimiser, and no schedule, need a learning rate of their own.
    assert {path.split(".")[0] for path in found.pop("ablation_adam")} == {
        "optimizer", "weight_decay",
    }  # fmt: skip
    assert found.pop("ablation_constant_rate") == ["optimizer.learning_rate", "schedule.type"]
    assert {name: paths for name, paths in found.items() if len(paths) != 1} == {}


def changed(one, other, path=""):
    """Return the paths at which two values differ; what only one type of thing has is none."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return [path.removeprefix(".")] if one != other else []
    return [found for key in sorted(one.keys() & other.keys())
            for found in changed(one[key], other[key], f"{path}.{key}")]  # fmt: skip


def test_the_example_of_the_page_is_a_recipe(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example, half = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    Path("half.yaml").write_text(half)
    assert load_registry("half.yaml").recipes["half"].initial.shortcut == "identity"
    Path("mine.yaml").write_text(example)
    recipe = load_registry("mine.yaml").recipes["ingredients"]
    assert recipe.learning_rate_factors.norm_bias == 64
    assert recipe.augment.flip == "alternating"
    code, out, err = run_cli(
        capsys, "fit", "resnet20", "--recipe", "ingredients", "--registry", "mine.yaml",
        "--dataset", "digits", "--dry-run",
    )  # fmt: skip
    assert code == 0, err
    assert "norm_bias: 64" in out
    assert "flip: alternating" in out


SPACE = """
parameters:
  recipe.augment.flip: {type: choice, values: [none, horizontal, alternating]}
  recipe.learning_rate_factors.norm_bias: {type: float, min: 1, max: 64, log: true, step: 4}
"""


def test_a_search_can_name_the_fields(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(SPACE)
    document = read(file)
    space = schema.Space.model_validate(document.data)
    base = spaces.check_space(resolve("resnet8", dataset="digits"), space, document)
    values = {"recipe.augment.flip": "alternating", "recipe.learning_rate_factors.norm_bias": 16.0}
    made = spaces.apply(base, space, values)
    assert made.recipe.augment.flip == "alternating"
    assert made.recipe.learning_rate_factors.norm_bias == 16
    # Digits are not mirrored, in whatever way.
    left, _ = spaces.fitting(base, space)
    assert list(left.parameters) == ["recipe.learning_rate_factors.norm_bias"]


@pytest.mark.parametrize("factor", ["0", "-1", "1001", ".nan", "many"])
def test_factors_out_of_range_are_refused(tmp_path, capsys, factor):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "recipes: {mine: {extends: small, learning_rate_factors: {norm_bias: " + factor + "}}}\n"
    )
    code, _, err = run_cli(capsys, "validate", str(file))
    assert code == 2
    assert "recipes.mine.learning_rate_factors.norm_bias" in err
    with pytest.raises(DocumentError):
        load_registry(file)


def test_factors_of_other_variables_are_told_the_known_name(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("recipes: {mine: {extends: small, learning_rate_factors: {norm_bais: 2}}}\n")
    code, _, err = run_cli(capsys, "validate", str(file))
    assert code == 2
    assert "unknown key 'norm_bais'. Did you mean 'norm_bias'?" in err
