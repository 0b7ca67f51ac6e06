"""Result cards: written from runs, read strictly, listed, and verified."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from commands import run_cli, run_lightly
from rich.console import Console

import kerasnet
from kerasnet.config import new_run, read_config, with_values
from kerasnet.data.places import without_place
from kerasnet.document import DocumentError, to_yaml
from kerasnet.errors import BadInputError, DisagreementError, InterruptedRunError
from kerasnet.files import shipped
from kerasnet.registry import load_registry
from kerasnet.repeating import differences, fit_line, fit_options, portable
from kerasnet.results import table
from kerasnet.results.add import add
from kerasnet.results.card import Card, cards_in, find_card, mean_and_sd, read_card, to_text
from kerasnet.results.compare import compare_with
from kerasnet.results.table import BEGIN, END, NOTHING, beside, markdown, page_with, update
from kerasnet.results.verify import Verdict, compare, report, tolerance, verify
from kerasnet.runs import load_run

ROOT = Path(__file__).parents[1]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of three epochs; not to be changed."""
    run = kerasnet.fit("resnet8", dataset="digits", epochs=3, precision="float32", console=QUIET,
                       out=tmp_path_factory.mktemp("runs") / "first")  # fmt: skip
    return run.path


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, in a folder of its own."""
    return shutil.copytree(trained, tmp_path / "run")


def edited(folder: Path, file: str, **values) -> Path:
    """Change fields of a JSON file in a folder; None removes one."""
    found = json.loads((folder / file).read_text()) | values
    kept = {key: value for key, value in found.items() if value is not None}
    (folder / file).write_text(json.dumps(kept))
    return folder


def as_seed(run: Path, seed: int, wrong: int = 0) -> Path:
    """Copy a run as if it were one of another seed that told so many more images wrong."""
    folder = shutil.copytree(run, run.with_name(f"seed-{seed}"))
    config = load_run(folder).config
    load_run(folder).write_config(config.model_copy(update={"seed": seed}))
    with np.load(folder / "predictions.npz") as held:
        labels, probabilities = held["labels"], held["probabilities"]
    right = np.flatnonzero(probabilities.argmax(axis=1) == labels)[:wrong]
    probabilities[right] = np.roll(probabilities[right], 1, axis=1)
    load_run(folder).write_predictions(labels, probabilities)
    accuracy = float((probabilities.argmax(axis=1) == labels).mean())
    return edited(folder, "summary.json", test_accuracy=accuracy)


def card_of(run: Path, folder: Path, **options) -> tuple[Path, Card]:
    return add([run], folder=folder / "results", **options)


def tampered(card: Card, *changes: tuple[str, object]) -> Card:
    """Return a card with values replaced, each named by its path; read as a file would be."""
    plain = card.model_dump(mode="json", by_alias=True)
    for path, value in changes:
        *parents, last = path.split(".")
        node = plain
        for part in parents:
            node = node[int(part) if isinstance(node, list) else part]
        node[int(last) if isinstance(node, list) else last] = value
    return Card.model_validate(plain)


# ---------------------------------------------------------------------------- adding


def test_a_card_says_what_the_run_says(run, tmp_path, capsys):
    cards = tmp_path / "cards"
    code, out, err = run_cli(capsys, "results", "add", str(run), "--results", str(cards),
                             "--predicted", "0.9")  # fmt: skip
    assert (code, err) == (0, "")
    file = cards / "resnet8-digits-digits-3.json"
    assert str(file) in out
    card, summary = read_card(file), load_run(run).summary()
    assert (card.model, card.recipe, card.dataset) == ("resnet8", "digits", "digits")
    assert card.data_remark == "scikit-learn's digits"
    assert card.test_accuracy == summary["test_accuracy"]
    assert (card.test_accuracy_sd, card.predicted, card.seeds) == (None, 0.9, [0])
    assert (card.seconds, card.epochs, card.test_images) == (summary["seconds"], 3, 360)
    assert [row.model_dump() for row in card.runs[0].curve] == load_run(run).metrics()
    assert card.hardware.devices == ["cpu:0"]
    assert card.versions["keras"]
    assert len(card.runs[0].images_checksum) == 8
    assert card.command == (
        "kerasnet fit resnet8 --recipe digits --dataset digits --precision float32 --epochs 3"
    )
    assert not list(differences(card.config, load_run(run).config))
    assert file.read_text() == to_text(card)


def test_the_command_of_a_card_resolves_to_its_configuration(run, tmp_path, capsys):
    _, card = card_of(run, tmp_path)
    _, out, _ = run_cli(capsys, *card.command.split()[1:], "--dry-run")
    (tmp_path / "again.yaml").write_text(out)
    assert not list(differences(read_config(tmp_path / "again.yaml"), card.config))


@pytest.mark.parametrize("name", ["mine", "digits"])
def test_what_the_registry_does_not_have_is_repeated_from_the_card(
    run, tmp_path, capsys, monkeypatch, name
):
    """Also where somebody's own registry has it, under the name of another recipe even."""
    config = with_values(load_run(run).config, {"recipe.gradient_clip": 1e6})
    load_run(run).write_config(config.model_copy(update={"recipe_name": name}))
    edited(run, "summary.json", recipe=name)
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"recipes: {{{name}: {{extends: digits, gradient_clip: 1e6}}}}\n")
    known = load_registry(str(mine))
    file, card = add([run], folder=tmp_path / "results", registry=known,
                     name="resnet8-digits-digits-3")  # fmt: skip
    assert card.command == "kerasnet fit --config results/resnet8-digits-digits-3.json"
    monkeypatch.chdir(tmp_path)
    relative, _ = add([run], folder="results/mine", name="mine")
    assert read_card(relative).command == "kerasnet fit --config results/mine/mine.json"
    code, out, err = run_cli(capsys, "fit", "--config", str(file), "--dry-run", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == card.config.model_dump(mode="json", by_alias=True)


def test_seeds_of_one_configuration_make_one_card(run, tmp_path):
    for seed, wrong in ((2, 4), (10, 8)):
        as_seed(run, seed, wrong)
    shutil.move(run, tmp_path / "seed-0")
    file, card = add([tmp_path], folder=tmp_path / "results", name="three")
    values = [found.test_accuracy for found in card.runs]
    assert card.seeds == [0, 2, 10]
    assert card.command.endswith(" --epochs 3 --seeds 0,2,10")
    assert values == pytest.approx([values[0], values[0] - 4 / 360, values[0] - 8 / 360])
    assert card.test_accuracy == pytest.approx(values[1])
    assert card.test_accuracy_sd == pytest.approx(4 / 360)
    assert len({found.predictions_sha256 for found in card.runs}) == 3
    assert read_card(file) == card
    again = [tmp_path / f"seed-{seed}" for seed in card.seeds]
    assert add(again, folder=tmp_path / "results", name="three") == (file, card)
    (tmp_path / "seeds.yaml").write_text("seeds: [0, 2, 10, 11]\n")
    with pytest.raises(BadInputError, match=r"seed 11 has not been trained.* fit --resume"):
        add([tmp_path], folder=tmp_path / "results", name="four")
    (tmp_path / "seeds.yaml").write_text("seeds: [0, 2, 10]\n")
    assert add([tmp_path], folder=tmp_path / "results", name="three") == (file, card)


def test_other_runs_than_seeds_are_refused(run, tmp_path):
    other = as_seed(run, 1)
    config = load_run(other).config
    longer = config.recipe.model_copy(update={"batch_size": 64})
    load_run(other).write_config(config.model_copy(update={"recipe": longer}))
    with pytest.raises(BadInputError, match=r"recipe\.batch_size is 32 and 64\. Add them as"):
        add([run, other], folder=tmp_path / "results")
    with pytest.raises(BadInputError, match="the same seed, 0"):
        add([run, run], folder=tmp_path / "results")
    elsewhere = edited(as_seed(run, 2), "environment.json", cpus=999)
    with pytest.raises(BadInputError, match=r"different machines: hardware\.cpus is \d+ and 999"):
        add([run, elsewhere], folder=tmp_path / "results")
    assert not (tmp_path / "results").exists()


def _without_row(run: Path) -> None:
    lines = (run / "metrics.csv").read_text().splitlines()
    (run / "metrics.csv").write_text("\n".join(lines[:-1]) + "\n")


def _with_endless_step(run: Path) -> None:
    names, first, *rest = (run / "metrics.csv").read_text().splitlines()
    cells = dict(zip(names.split(","), first.split(","), strict=True)) | {"step": "inf"}
    (run / "metrics.csv").write_text("\n".join([names, ",".join(cells.values()), *rest, ""]))


def _with_weights(run: Path) -> None:
    config = load_run(run).config
    load_run(run).write_config(config.model_copy(update={"weights": "/tmp/w.safetensors"}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: (run / "summary.json").unlink(), "has not finished. Go on with: kerasnet fit"),
        (lambda run: edited(run, "summary.json", test_accuracy=None), "was never measured"),
        (lambda run: edited(run, "summary.json", test_accuracy=0.5), "images are told right"),
        (lambda run: edited(run, "summary.json", epochs=4), "epochs is 4, but config.yaml says 3"),
        (lambda run: (run / "predictions.npz").unlink(), "is missing or empty"),
        (lambda run: (run / "predictions.npz").write_bytes(b"PK"), "predictions.npz: expected"),
        (lambda run: (run / "checkpoints/last.safetensors").unlink(), "last.safetensors: cannot"),
        (_with_endless_step, "metrics.csv: not a table of a run's epochs: step"),
        (_without_row, "a row for each of 3 epochs, received 2"),
        (_with_weights, "began from /tmp/w.safetensors"),
        (lambda run: (run / "environment.json").unlink(), "environment.json: cannot be read"),
        (lambda run: shutil.rmtree(run), "not a run folder"),
    ],
)
def test_what_no_card_can_be_made_of_is_refused(run, tmp_path, capsys, damage, said):
    damage(run)
    cards = tmp_path / "cards"
    code, out, err = run_cli(capsys, "results", "add", str(run), "--results", str(cards))
    assert (code, out) == (2, "")
    assert said in err
    assert not cards.exists()


def test_another_card_of_the_name_is_kept(run, tmp_path, capsys):
    words = ["results", "add", "--results", str(tmp_path / "cards"), "--name", "mine"]
    assert run_cli(capsys, *words, str(run))[0] == 0
    file = tmp_path / "cards" / "mine.json"
    before = file.read_bytes()
    assert run_cli(capsys, *words, str(run))[0] == 0
    code, _, err = run_cli(capsys, *words, str(run), "--predicted", "0.5")
    assert code == 2
    assert "its `predicted` is None, that of the runs 0.5" in err
    assert "--force" in err
    assert file.read_bytes() == before
    assert run_cli(capsys, *words, str(run), "--predicted", "0.5", "--force")[0] == 0
    assert read_card(file).predicted == 0.5
    code, _, err = run_cli(capsys, *words[:-1], "../mine", str(run))
    assert code == 2
    assert "--name takes" in err


@pytest.mark.parametrize("field", ["data_remark", "train_images"])
def test_seeds_of_other_data_are_refused(run, tmp_path, field):
    other = as_seed(run, 1)
    edited(other, "summary.json", **{field: {"data_remark": "a copy", "train_images": 9}[field]})
    with pytest.raises(BadInputError, match=f"had other data: {field} is"):
        add([run, other], folder=tmp_path / "results")


def test_a_schedule_that_no_command_repeats_is_refused(run, tmp_path):
    opened = load_run(run)
    rows = opened.metrics()
    rows[1]["learning_rate"] /= 2
    opened.write_rows("metrics.csv", tuple(rows[0]), rows)
    with pytest.raises(BadInputError, match=r"learning rate of epoch 2 is .* no command repeats"):
        card_of(run, tmp_path)


def at_steps(run: Path, precision: str, lost: list[int], factor: float = 1.0) -> None:
    """Let a run of three epochs have a precision, and rates as if so many steps did not count."""
    from kerasnet.recipe import RecipeSchedule

    opened = load_run(run)
    config = with_values(opened.config, {"precision.resolved": precision})
    opened.write_config(config)
    recipe, rows = config.recipe, opened.metrics()
    schedule = RecipeSchedule(recipe.optimizer.learning_rate, recipe.schedule.model_dump(),
                              rows[0]["step"], 3)  # fmt: skip
    for row, n in zip(rows, lost, strict=True):
        row["learning_rate"] = factor * float(schedule(row["step"] - 1 - n))
    opened.write_rows("metrics.csv", tuple(rows[0]), rows)


def test_steps_that_overflow_float16_do_not_count(run, tmp_path):
    at_steps(run, "mixed_float16", [2, 2, 5])
    _, card = card_of(run, tmp_path)
    assert card.precision == "mixed_float16"
    assert tolerance(card, 1, "learning_rate") is None
    for precision, lost, factor in (
        ("float32", [2, 2, 5], 1.0),
        ("mixed_float16", [2, 0, 0], 1.0),  # what is lost stays lost
        ("mixed_float16", [0, 0, 0], 0.5),
    ):
        at_steps(run, precision, lost, factor)
        with pytest.raises(BadInputError, match="no command repeats it"):
            card_of(run, tmp_path)


def test_seeds_may_have_read_the_same_data_in_other_places(run, tmp_path):
    remark = "read from {}/cifar10/3.0.2; stored as JPEG"
    for place, folder in (("/a", edited(run, "summary.json")), ("/b", as_seed(run, 1))):
        opened = load_run(folder)
        opened.write_config(with_values(opened.config, {"data.data_dir": place}))
        edited(folder, "summary.json", data_remark=remark.format(place))
    _, card = add([run, run.with_name("seed-1")], folder=tmp_path / "results")
    assert card.seeds == [0, 1]
    assert card.data_remark == "version 3.0.2; stored as JPEG"


def test_a_card_is_made_where_the_data_are_not(run, tmp_path, monkeypatch):
    """Runs come from the machine that trained them."""

    def nowhere(*_):
        raise BadInputError("the data are not on this machine")

    monkeypatch.setattr("kerasnet.data.locate", nowhere)
    assert card_of(run, tmp_path)[1].command.startswith("kerasnet fit resnet8 --recipe digits")


def test_no_path_of_this_machine_stands_in_a_card(run, tmp_path):
    opened = load_run(run)
    data = opened.config.data.model_copy(update={"data_dir": "/home/somebody/data"})
    opened.write_config(opened.config.model_copy(update={"data": data}))
    remark = "read from /home/somebody/data/cifar10/3.0.2; stored as JPEG"
    file, card = card_of(edited(run, "summary.json", data_remark=remark), tmp_path)
    assert card.data_remark == "version 3.0.2; stored as JPEG"
    assert card.config.data.data_dir is None
    text = file.read_text()
    assert "somebody" not in text
    assert str(tmp_path) not in text
    with pytest.raises(ValueError, match="command holds /home/somebody/x, a path of one machine"):
        tampered(card, ("command", "kerasnet fit resnet8 --data-dir /home/somebody/x"))


@pytest.mark.parametrize(
    ("remark", "said"),
    [
        ("scikit-learn's digits", "scikit-learn's digits"),
        ("read from /data/cifar10/3.0.2; stored as JPEG", "version 3.0.2; stored as JPEG"),
        ("read from /data/cifar-10-binary.tar.gz", "read from cifar-10-binary.tar.gz"),
        (
            "read from /a; b/photos; no test folder: 20% held out for it",
            "read from photos; no test folder: 20% held out for it",
        ),
        (
            "read from /x/1.0.0; stored as JPEG; no test split: 20% of train held out for it",
            "version 1.0.0; stored as JPEG; no test split: 20% of train held out for it",
        ),
    ],
)
def test_a_remark_without_its_place(remark, said):
    assert without_place(remark) == said


# ---------------------------------------------------------------------------- repeating


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"recipe": "small", "epochs": 5, "batch_size": 64, "learning_rate": 0.0123},
        {"seed": 7, "limit_train": 100, "deterministic": True, "steps_per_execution": 2},
        {"on_nan": "rollback", "checkpoint_every": {"steps": 10}, "keep_checkpoints": 5},
        {"input_size": (16, 24), "epochs": 2},
    ],
    ids=str,
)
def test_the_options_of_a_configuration_are_found_again(options):
    config = new_run("resnet8", {"dataset": "digits", "precision": "float32", **options})
    found = fit_options(config)
    assert found is not None
    # When and how many checkpoints are written changes nothing about the result.
    wanted = {k: v for k, v in options.items() if k not in ("checkpoint_every", "keep_checkpoints")}
    assert found == {"recipe": "digits", "dataset": "digits", "precision": "float32", **wanted}
    assert not list(differences(new_run("resnet8", found), config))


def test_what_no_options_say_has_none():
    config = new_run("resnet8", {"dataset": "digits", "epochs": 4})
    assert fit_options(config.model_copy(update={"horizon": 9})) is None
    assert fit_options(config.model_copy(update={"recipe_name": "mine"})) is None


def test_a_folder_of_pictures_keeps_its_last_name(tmp_path):
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            file = tmp_path / "photos" / name / f"{i}.png"
            Image.new("RGB", (32, 32), (25 * i, 9, 9)).save(file)
    config = new_run("resnet8", {"dataset": str(tmp_path / "photos"), "precision": "float32"})
    moved = portable(config)
    assert (moved.data.name, moved.data.spec.source.name) == ("photos", "photos")
    assert fit_options(config) is None


def test_the_line_writes_flags_and_lists():
    said = fit_line("resnet8", {"deterministic": True, "seeds": [0, 1], "seed": 0, "out": "a b"})
    assert said == "kerasnet fit resnet8 --deterministic --seeds 0,1 --out 'a b'"


# ---------------------------------------------------------------------------- reading


def _text(card: Card) -> dict:
    return json.loads(to_text(card))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("test_accuracy", 1.5, "test_accuracy: expected less than or equal to 1"),
        ("test_accuracy", 0.123, "test_accuracy: the card says 0.123"),
        ("test_acuracy", 0.5, "unknown key 'test_acuracy'. Did you mean 'test_accuracy'?"),
        ("epochs", 4, "epochs: the card says 4"),
        ("seeds", [1], "seeds: the card says [1]"),
        ("model", "resnet20", "model: the card says resnet20"),
        ("runs.0.weights_sha256", "abc", "runs[0].weights_sha256"),
        ("runs.0.curve.1.loss", float("nan"), "runs[0].curve[1].loss"),
        ("runs.0.curve.1.epoch", 7, "does not count its epochs from 1"),
        ("config.recipe.batch_size", "32", "config.recipe.batch_size"),
        ("config.data.data_dir", "/home/me/data", "config.data.data_dir holds /home/me/data"),
        ("format", 2, "format: expected 1"),
    ],
)
def test_a_card_is_read_strictly(run, tmp_path, capsys, path, value, said):
    file, card = card_of(run, tmp_path)
    plain = node = _text(card)
    *parents, last = path.split(".")
    for part in parents:
        node = node[int(part) if isinstance(node, list) else part]
    node[last] = value
    file.write_text(json.dumps(plain, indent=2))
    code, out, err = run_cli(capsys, "results", "--results", str(file.parent))
    assert (code, out) == (2, "")
    assert said in err
    assert f"{file}:" in err
    assert run_cli(capsys, "validate", str(file))[0] == 2


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"{}"])
def test_what_is_no_card_is_refused(tmp_path, content):
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(BadInputError, match=r"x\.json"):
        read_card(file)


def test_an_error_names_line_and_column(run, tmp_path):
    file, _ = card_of(run, tmp_path)
    lines = file.read_text().splitlines()
    wrong = next(i for i, line in enumerate(lines) if '"test_images"' in line)
    lines[wrong] = '  "test_images": "many",'
    file.write_text("\n".join(lines))
    with pytest.raises(DocumentError) as raised:
        read_card(file)
    assert str(raised.value).startswith(f"{file}:{wrong + 1}:3: test_images: expected")


def test_a_card_is_found_by_name_or_file(run, tmp_path):
    file, card = card_of(run, tmp_path)
    assert find_card(file.stem, file.parent) == file
    assert find_card(str(file)) == file
    assert cards_in(file.parent) == {file.stem: card}
    with pytest.raises(BadInputError, match="Did you mean 'resnet8-digits-digits-3'"):
        find_card("resnet8-digits-digit-3", file.parent)
    with pytest.raises(BadInputError, match="no such folder of result cards"):
        cards_in(tmp_path / "nowhere")


def test_mean_and_sd():
    assert mean_and_sd([0.5]) == (0.5, None)
    assert mean_and_sd([0.25, 0.75]) == (0.5, pytest.approx(0.125**0.5))


# ---------------------------------------------------------------------------- listing


def test_results_are_listed(run, tmp_path, capsys):
    card_of(run, tmp_path, predicted=0.91)
    code, out, _ = run_cli(capsys, "results", "--results", str(tmp_path / "results"))
    accuracy = load_run(run).summary()["test_accuracy"]
    assert code == 0
    lines = out.splitlines()
    for said in (" digits ", f"{accuracy:.2%} (1 seed)", "91.00%", "resnet8"):
        assert said in lines[2]
    assert max(map(len, lines)) <= 130
    _, out, _ = run_cli(capsys, "results", "--results", str(tmp_path / "results"), "--json")
    (found,) = json.loads(out)
    assert found["test_accuracy"] == accuracy
    assert found["data_remark"] == "scikit-learn's digits"
    assert "config" not in found


def test_the_published_figure_stands_beside_a_card_of_its_data_set(run, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("models: {resnet8: {extends: resnet8, published: "
                    "{dataset: digits, top1: 97.5, source: somebody}}}\n")  # fmt: skip
    _, card = card_of(run, tmp_path)
    assert card.published is None
    _, card = card_of(run, tmp_path, registry=load_registry(str(mine)), name="mine")
    assert card.published.top1 == 97.5
    assert "97.50% (somebody)" in markdown(tmp_path / "results", tmp_path)


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--help"], ["verify", "--help"]], ids=str)
def test_listing_loads_neither_tensorflow_nor_numpy(arguments, run, tmp_path):
    card_of(run, tmp_path)
    words = ["--results", str(tmp_path / "results")] if arguments in ([], ["--json"]) else []
    assert run_lightly("results", *words, *arguments).strip()


def test_the_table_of_a_page_is_regenerated(run, tmp_path, capsys):
    page = tmp_path / "README.md"
    page.write_text(f"# Mine\n\n{BEGIN}\nold\n{END}\n\nend\n")
    file, card = card_of(run, tmp_path)
    words = ["results", "table", str(page), "--results", str(file.parent)]
    assert "written" in run_cli(capsys, *words)[1]
    text = page.read_text()
    assert text.startswith(f"# Mine\n\n{BEGIN}\n| model |")
    assert text.endswith(f"{END}\n\nend\n")
    assert f"| [resnet8](results/{file.name}) |" in text
    assert f"`{card.command}`" in text
    assert "old" not in text
    assert "says this already" in run_cli(capsys, *words)[1]
    assert page.read_text() == text


@pytest.mark.parametrize("text", ["", BEGIN, f"{END} {BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_page_without_markers_is_left_alone(text, tmp_path):
    page = tmp_path / "README.md"
    page.write_text(text)
    with pytest.raises(BadInputError, match=r"expected `<!-- results -->`"):
        update(page)
    assert page.read_text() == text


def test_what_a_card_says_stays_text_in_a_page(run, tmp_path):
    remark = "a | b <script> `x` [y](z)"
    card_of(edited(run, "summary.json", data_remark=remark), tmp_path)
    assert "a \\| b \\<script\\> \\`x\\` \\[y\\](z)" in markdown(tmp_path / "results", tmp_path)


ABLATION = ROOT / "results" / "ablation"
PLAIN = "resnet8-cifar10-ablation-8"


@pytest.mark.parametrize(("page", "folder", "against"), [
    ("README.md", ROOT / "results", None), ("docs/recipes.md", ABLATION, PLAIN),
])  # fmt: skip
def test_pages_and_results_agree(page, folder, against):
    place = (ROOT / page).parent
    check_page((ROOT / page).read_text(), markdown(folder, place, against), page)


def check_page(text: str, rows: str, page: str = "README.md") -> None:
    __tracebackhide__ = True
    assert text == page_with(text, rows, page), f"write the table again: results table {page}"


def test_every_ingredient_has_a_card_of_three_seeds():
    known = load_registry(str(ROOT / "docs" / "ablation.yaml"))
    cards = cards_in(ABLATION)
    assert {card.recipe for card in cards.values()} == {
        name for name in known.recipes if name.startswith("ablation")
    }
    check_ablation(cards, known)


def test_what_is_said_of_longer_training_is_on_cards():
    known = load_registry(str(ROOT / "docs" / "ablation.yaml"))
    cards = cards_in(ROOT / "results" / "ablation_24")
    check_ablation(cards, known, {"epochs": 24})
    text = (ROOT / "docs" / "recipes.md").read_text()
    plain, bare = (cards[f"resnet8-cifar10-{n}-24"] for n in ("ablation", "ablation_no_crop"))
    reached = [f"{100 * c.test_accuracy:.2f} ± {100 * c.test_accuracy_sd:.2f} %"
               for c in (bare, plain)]  # fmt: skip
    assert f"({reached[0]} in place of {reached[1]}, three" in text
    assert f"{100 * (plain.test_accuracy - bare.test_accuracy):.1f} points worse" in text


def check_ablation(cards, known, changed=MappingProxyType({})):
    for name, card in cards.items():
        assert card.seeds == [0, 1, 2], name
        assert card.config.recipe == known.recipes[card.recipe].model_copy(update=changed), name
        assert (card.model, card.train_images, card.precision) == ("resnet8", 15000, "float32")
    assert len(compare_with(cards, f"{PLAIN[:-1]}{card.epochs}")) == len(cards) - 1


def test_the_check_of_the_readme_can_fail(run, tmp_path):
    text, folder = (ROOT / "README.md").read_text(), tmp_path / "results"
    shutil.copytree(ROOT / "results", folder)
    rows = markdown(folder, tmp_path)
    check_page(text, rows)
    card_of(run, tmp_path)
    with pytest.raises(AssertionError, match="write the table again"):
        check_page(text, markdown(folder, tmp_path))
    with pytest.raises(AssertionError, match="write the table again"):
        check_page(text.replace(END, f"| one more |\n{END}"), rows)


# ---------------------------------------------------------------------------- one beside another


def reached(card: Card, accuracies, *changes: tuple[str, object]) -> Card:
    """Return a card as if seeds 0, 1, … had come to these accuracies."""
    plain = card.model_dump(mode="json", by_alias=True)["runs"][0]
    runs = [plain | {"seed": i, "test_accuracy": found} for i, found in enumerate(accuracies)]
    mean, sd = mean_and_sd(accuracies)
    return tampered(card, ("runs", runs), ("seeds", list(range(len(runs)))),
                    ("test_accuracy", mean), ("test_accuracy_sd", sd), *changes)  # fmt: skip


@pytest.fixture(scope="module")
def base(trained, tmp_path_factory) -> Card:
    return card_of(trained, tmp_path_factory.mktemp("base"))[1]


def test_two_cards_differ_by_students_interval(base):
    from scipy.stats import ttest_ind

    a, b = [0.90, 0.92, 0.91], [0.93, 0.95, 0.93, 0.94]
    cards = {"a": reached(base, a), "b": reached(base, b, ("config.recipe.label_smoothing", 0.1))}
    (found,) = compare_with(cards, "a")
    expected = ttest_ind(b, a).confidence_interval(0.95)
    assert (found.name, found.changes) == ("b", {"label_smoothing": 0.1})
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.difference == pytest.approx(0.0275)
    (other_way,) = compare_with(cards, "b")
    assert (other_way.low, other_way.high) == pytest.approx((-found.high, -found.low))


def test_intervals_of_many_cards_hold_together(base):
    """Of cards that are all alike, at most a twentieth of the tables show a difference."""
    drawn = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        cards = {f"c{i}": reached(base, list(drawn.normal(0.8, 0.01, 3))) for i in range(6)}
        wrong += any(not one.low <= 0 <= one.high for one in compare_with(cards, "c0"))
    # 10 are expected of exact intervals, with a standard deviation of 3.
    assert 1 <= wrong <= 19


def test_the_best_card_comes_first(base):
    cards = {name: reached(base, [value]) for name, value in
             {"base": 0.8, "lower": 0.7, "best": 0.9, "higher": 0.85}.items()}  # fmt: skip
    found = compare_with(cards, "base")
    assert [one.name for one in found] == ["best", "higher", "lower"]
    assert all(one.low is None and one.high is None for one in found)


def test_what_differs_is_said_shortly(base):
    changes = (
        ("config.recipe.schedule", {"type": "constant"}),
        ("config.recipe.augment", {"cutout": {"size": 8}}),
        ("config.recipe.gradient_clip", 1.0),
    )
    cards = {"a": base, "b": tampered(base, *changes)}
    (found,) = compare_with(cards, "a")
    assert found.changes == {"schedule.type": "constant", "augment.crop": None,
                             "augment.cutout.size": 8, "gradient_clip": 1.0}  # fmt: skip
    (back,) = compare_with(cards, "b")
    assert back.changes["augment.cutout"] is None
    assert back.changes["gradient_clip"] is None
    said = beside(cards, "a").splitlines()[-1]
    assert "augment.crop: none" in said
    assert "gradient_clip: 1.0" in said


def test_a_stage_that_is_missing_is_named(base):
    stages = base.config.model_dump(mode="json", by_alias=True)["architecture"]["model"]["stages"]
    shorter = tampered(base, ("config.architecture.model.stages", stages[:-1]))
    (found,) = compare_with({"a": base, "b": shorter}, "a")
    assert found.changes == {f"architecture.model.stages.{len(stages) - 1}": None}


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, True, False, None, [], {}, "é"])
def test_any_value_is_written_as_what_it_is(value):
    words = {"None": "none", "True": "true", "False": "false"}
    assert table._value(value) == words.get(str(value), str(value))


def test_cards_are_held_against_another(base, tmp_path, capsys):
    changed = ("config.recipe.label_smoothing", 0.2)
    folder = tmp_path / "results"
    folder.mkdir()
    for name, card in {"plain": reached(base, [0.8, 0.82]), "one": reached(base, [0.9]),
                       "smooth": reached(base, [0.84, 0.86], changed)}.items():  # fmt: skip
        (folder / f"{name}.json").write_text(to_text(card))
    words = ["--results", str(folder), "--against", "plain"]
    _, out, _ = run_cli(capsys, "results", *words)
    rows = [line.split() for line in out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["plain", "one", "smooth"]
    assert rows[2][1:3] == ["label_smoothing:", "0.2"]
    assert "+4.00" in rows[2]
    _, out, _ = run_cli(capsys, "results", *words, "--json")
    smooth = json.loads(out)[1]
    assert smooth["changes"] == {"label_smoothing": 0.2}
    assert smooth["difference"] == pytest.approx(0.04)
    assert smooth["low"] < smooth["difference"] < smooth["high"]
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    run_cli(capsys, "results", "table", str(page), *words)
    assert "| [digits](results/smooth.json) | label\\_smoothing: 0.2 | 85.00%" in page.read_text()


@pytest.mark.parametrize(("against", "said"), [
    ("plane", "there is no result card 'plane'. Did you mean 'plain'?"),
    ("plain", "there is no other card of resnet8 on digits"),
])  # fmt: skip
def test_a_card_that_nothing_can_be_held_against(base, tmp_path, capsys, against, said):
    (tmp_path / "plain.json").write_text(to_text(base))
    other = tampered(base, ("dataset", "cifar10"), ("config.data.name", "cifar10"))
    (tmp_path / "other.json").write_text(to_text(other))
    code, out, err = run_cli(capsys, "results", "--results", str(tmp_path), "--against", against)
    assert (code, out) == (2, "")
    assert said in err


def test_an_option_before_the_command_is_not_passed_over(base, tmp_path, capsys):
    for words in (["--results", str(tmp_path), "verify", "x"], ["--json", "add", "runs/x"]):
        code, _, err = run_cli(capsys, "results", *words)
        assert code == 2
        assert f"{words[0]} belongs behind the command: kerasnet results {words[-2]}" in err


def test_a_card_s_command_is_a_command(base):
    for command in ("rm -r x", "kerasnet fit x `y`", "kerasnet fit x\nz", "kerasnet fit <b>"):
        with pytest.raises(ValueError, match="command"):
            tampered(base, ("command", command))


def test_cards_are_listed_by_their_numbers(base, tmp_path):
    for name in ("a-20", "a-8", "b", "a-8-1"):
        (tmp_path / f"{name}.json").write_text(to_text(base))
    assert list(cards_in(tmp_path)) == ["a-8", "a-8-1", "a-20", "b"]


# ---------------------------------------------------------------------------- shipped cards


@pytest.mark.parametrize("name", sorted(cards_in()) or [None])
def test_a_shipped_card_is_still_what_its_command_trains(name):
    if name is None:
        assert NOTHING in (ROOT / "README.md").read_text()
        pytest.skip("no card ships yet")
    file = shipped("results") / f"{name}.json"
    card = read_card(file)
    assert file.read_text() == to_text(card), "somebody wrote into the card"
    if "--config" not in card.command:
        options = fit_options(card.config)
        assert options is not None, "the registry has changed: add the runs to the card once more"
    if card.shipped is not None:
        assert (file.parent / card.shipped.file).is_file()


# ---------------------------------------------------------------------------- verifying


@pytest.fixture(scope="module")
def known(trained, tmp_path_factory):
    """The run's card, in a folder."""
    return add([trained], folder=tmp_path_factory.mktemp("cards"))


@pytest.fixture(scope="module")
def verdict(known, tmp_path_factory) -> Verdict:
    file, card = known
    return verify(file.stem, card, console=QUIET, out=tmp_path_factory.mktemp("again") / "run")


def test_a_run_is_repeated(verdict, known):
    _, card = known
    assert verdict.disagreements == []
    assert [one.epoch for one in verdict.compared] == [1] * 6 + [2] * 6
    assert verdict.images[0] == verdict.images[1] == card.runs[0].images_checksum
    assert verdict.machines == {}
    judged = {one.field for one in verdict.compared if one.tolerance is not None}
    assert judged == {"step", "loss", "accuracy", "learning_rate"}
    # The test set stays unread, and the schedule is that of three epochs.
    repeated = load_run(verdict.run)
    assert not (repeated.path / "predictions.npz").exists()
    assert repeated.summary()["test_accuracy"] is None
    assert (repeated.config.recipe.epochs, repeated.config.horizon) == (2, 3)


@pytest.mark.parametrize(
    ("path", "factor", "fields"),
    [
        ("runs.0.curve.0.loss", 1.15, ["loss of epoch 1"]),
        ("runs.0.curve.1.loss", 0.85, ["loss of epoch 2"]),
        ("runs.0.curve.0.accuracy", 1.15, ["accuracy of epoch 1"]),
        ("runs.0.curve.1.accuracy", 0.9, ["accuracy of epoch 2"]),
        ("runs.0.curve.1.learning_rate", 1.01, ["learning_rate of epoch 2"]),
        ("runs.0.curve.0.loss", 1.001, []),
        ("runs.0.curve.0.val_loss", 1.5, []),
        ("runs.0.curve.2.loss", 2.0, []),
    ],
)
def test_a_tampered_curve_is_found_out(verdict, known, path, factor, fields):
    _, card = known
    _, _, _, row, field = path.split(".")
    value = getattr(card.runs[0].curve[int(row)], field) * factor
    changed = tampered(card, (path, value))
    from kerasnet.results.add import curve

    said = [one for one in compare(changed, curve(load_run(verdict.run), 2)) if not one.agrees]
    assert [f"{one.field} of epoch {one.epoch}" for one in said] == fields


def test_another_number_of_steps_is_found_out(verdict, known):
    _, card = known
    from kerasnet.results.add import curve

    changed = tampered(card, ("runs.0.curve.0.step", 41))
    said = [one for one in compare(changed, curve(load_run(verdict.run), 2)) if not one.agrees]
    assert [(one.field, one.difference) for one in said] == [("step", -1)]


def test_a_card_of_another_rate_does_not_agree(known, tmp_path, capsys):
    """Also where whoever changed the rate scaled the curve's rates too."""
    _, card = known
    rates = [(f"runs.0.curve.{i}.learning_rate", 3 * row.learning_rate)
             for i, row in enumerate(card.runs[0].curve)]  # fmt: skip
    rate = card.config.recipe.optimizer.learning_rate
    changed = tampered(card, ("config.recipe.optimizer.learning_rate", 3 * rate), *rates)
    file = tmp_path / "faster.json"
    file.write_text(to_text(changed))
    words = ["results", "verify", str(file), "--out", str(tmp_path / "run"), "--json"]
    code, out, err = run_cli(capsys, *words)
    found = json.loads(out)
    assert code == DisagreementError.exit_code == 5
    assert "was not repeated: loss of epoch 1 is" in err
    assert not found["agrees"]
    wrong = {(one["field"], one["epoch"]) for one in found["compared"] if one["agrees"] is False}
    assert wrong == {("loss", 1), ("loss", 2), ("accuracy", 1), ("accuracy", 2)}


def test_a_card_of_another_seed_does_not_agree(known, tmp_path):
    file, card = known
    changed = tampered(card, ("config.seed", 5), ("seeds", [5]), ("runs.0.seed", 5))
    found = verify(file.stem, changed, console=QUIET, out=tmp_path / "run")
    assert found.seed == 5
    assert "these are other training images" in found.disagreements[0]
    assert "--data-dir" in found.message
    assert (found.compared, (tmp_path / "run").exists()) == ([], False)


def test_other_images_are_not_trained_on(known, tmp_path, capsys):
    _, card = known
    file = tmp_path / "card.json"
    file.write_text(to_text(tampered(card, ("runs.0.images_checksum", "01234567"))))
    words = ["results", "verify", str(file), "--out", str(tmp_path / "run"), "--json"]
    code, out, err = run_cli(capsys, *words)
    here = card.runs[0].images_checksum
    assert code == 5
    assert f"(scikit-learn's digits, checksum {here})" in err
    assert "checksum 01234567" in err
    found = json.loads(out)
    assert (found["agrees"], found["run"], found["compared"]) == (False, None, [])
    assert found["images_checksum"] == {"card": "01234567", "here": here}
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "value"),
    [("recipe.augment.crop", None), ("recipe.batch_size", 64), ("recipe.label_smoothing", 0.2)],
)
def test_a_card_of_another_recipe_does_not_agree(known, tmp_path, path, value):
    file, card = known
    changed = tampered(card, (f"config.{path}", value))
    found = verify(file.stem, changed, console=QUIET, out=tmp_path / "run")
    assert any("loss of epoch" in said for said in found.disagreements)


@pytest.mark.slow
def test_the_same_training_in_coarser_rounding_agrees(known, tmp_path):
    file, card = known
    changed = tampered(card, ("config.precision.resolved", "mixed_bfloat16"),
                       ("precision", "mixed_bfloat16"))  # fmt: skip
    found = verify(file.stem, changed, console=QUIET, out=tmp_path / "run")
    assert found.disagreements == []
    assert any(one.difference for one in found.compared if one.field == "loss")


def test_the_spread_of_seeds_widens_what_is_allowed(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "seed-0")
    alone = add([run], folder=tmp_path, name="alone")[1]
    for seed, factor in ((1, 0.9), (2, 1.1)):
        other = as_seed(run, seed)
        rows = load_run(other).metrics()
        scaled = [row | {"loss": row["loss"] * factor, "epoch": i, "step": 40 * i}
                  for i, row in enumerate(rows, 1)]  # fmt: skip
        load_run(other).write_rows("metrics.csv", tuple(rows[0]), scaled)
    two = add([run, tmp_path / "seed-1"], folder=tmp_path, name="two")[1]
    three = add([tmp_path], folder=tmp_path, name="three")[1]
    loss = alone.runs[0].curve[0].loss
    sampling = loss / 1293**0.5
    # Of four numbers, each may lie outside in 1.25 % of cases: 2.498 standard deviations, and
    # 8.86 of Student's with two degrees of freedom.
    assert tolerance(alone, 1, "loss") == pytest.approx(2**0.5 * 2.498 * sampling, rel=1e-3)
    assert tolerance(two, 1, "loss") == tolerance(alone, 1, "loss")
    assert tolerance(three, 1, "loss") == pytest.approx(
        2**0.5 * ((2.498 * sampling) ** 2 + (8.86 * 0.1 * loss) ** 2) ** 0.5, rel=1e-3
    )
    p = (alone.runs[0].curve[0].accuracy * 1293 + 1) / 1295
    assert tolerance(alone, 1, "accuracy") == pytest.approx(
        2**0.5 * 2.498 * (p * (1 - p) / 1293) ** 0.5, rel=1e-3
    )
    assert tolerance(alone, 1, "val_accuracy") is None


def test_another_seed_is_seldom_outside_what_is_allowed(base):
    """Where rounding makes a repetition as far off as another seed's run would be."""
    drawn = np.random.default_rng(0)
    wrong = 0
    for _ in range(300):
        curves = 0.5 + 0.05 * drawn.normal(size=(4, 2, 2))
        *seeds, again = [
            [(f"{path}.{row}.{field}", float(curve[row, i]))
             for row in (0, 1) for i, field in enumerate(("loss", "accuracy"))]
            for path, curve in zip(
                [*(f"runs.{i}.curve" for i in range(3)), "runs.0.curve"], curves, strict=True
            )
        ]  # fmt: skip
        card = tampered(reached(base, [0.9] * 3), *itertools.chain(*seeds))
        rows = tampered(reached(base, [0.9] * 3), *again).runs[0].curve[:2]
        wrong += not all(one.agrees for one in compare(card, rows))
    assert wrong <= 0.05 * 300


def test_a_disagreement_elsewhere_says_what_few_seeds_cannot_tell(verdict):
    first = replace(verdict.compared[0], expected=0.0, found=1.0, tolerance=0.5)
    wrong = replace(verdict, compared=[first, *verdict.compared[1:]])
    assert wrong.message.startswith("was not repeated: step of epoch 1 is 1")
    assert "too few seeds" not in wrong.message
    elsewhere = replace(wrong, machines={"cpus": (2, 64)})
    assert "too few seeds (1)" in elsewhere.message
    assert "too few seeds" not in replace(elsewhere, seeds=3).message
    assert "cpus 2 there, 64 here" in report(elsewhere)


def test_an_interrupted_verification_is_begun_again(known, tmp_path, capsys, monkeypatch):
    """Going on with its run folder would read the test set."""
    file, _ = known

    def interrupted(run, console, test):
        raise InterruptedRunError(f"Go on with: {run.resume_command}", signal.SIGTERM)

    monkeypatch.setattr("kerasnet.api.train_run", interrupted)
    words = ["results", "verify", str(file), "--out", str(tmp_path / "run"), "--data-dir", "here"]
    code, _, err = run_cli(capsys, *words)
    assert code == 143
    assert f"Go on with: kerasnet results verify {file} --data-dir here" in err
    assert "--resume" not in err


def test_what_cannot_be_verified_is_refused_before_training(known, tmp_path, capsys):
    file, _ = known
    code, _, err = run_cli(capsys, "results", "verify", "nosuch", "--results", str(file.parent))
    assert code == 2
    assert "no result card 'nosuch'" in err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    code, _, err = run_cli(capsys, "results", "verify", str(file), "--out", str(tmp_path / "full"))
    assert code == 2
    assert "already there and not empty" in err


def test_every_help_of_results_shows_an_example(capsys):
    for words in ([], ["add"], ["table"], ["verify"]):
        code, out, _ = run_cli(capsys, "results", *words, "--help")
        assert code == 0
        assert " ".join(["kerasnet results", *words]) in out.split("Example:")[1]


def test_a_configuration_survives_its_card(run, tmp_path):
    """What YAML and JSON make of a configuration is the same."""
    file, card = card_of(run, tmp_path)
    (tmp_path / "config.yaml").write_text(to_yaml(card.config))
    assert read_config(file) == read_config(tmp_path / "config.yaml") == card.config
