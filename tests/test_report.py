"""The HTML report, from synthetic run folders."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Page, check_self_contained

from kerasnet import report
from kerasnet.errors import BadInputError, EnvironmentFaultError
from kerasnet.schema import RunConfig

CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def config(names: list[str], validation: bool = True, epochs: int = 30) -> dict[str, Any]:
    """Return a configuration as a run dumps it."""
    stages = [
        {"block": "basic", "width": 16, "repeats": 3},
        {"block": "basic", "width": 32, "repeats": 3, "stride": 2},
        {"block": "basic", "width": 64, "repeats": 3, "stride": 2},
    ]
    convs = [{"kernel": 3, "takes_stride": True}, {"kernel": 3, "act": "none"}]
    document = {
        "kerasnet": "0.1.0",
        "architecture": {
            "name": "resnet20",
            "model": {
                "input": [32, 32, 3],
                "description": "A residual network for small images.",
                "origin": "He et al. 2015, section 4.2",
                "stem": [{"conv": {"filters": 16, "kernel": 3}}, "norm", "act"],
                "stages": stages,
                "head": ["global_avg_pool", {"dense": "classes"}],
            },
            "blocks": {"basic": {"convs": convs, "shortcut": "padded", "merge_act": "relu"}},
            "norms": {"bn": {"epsilon": 1e-5, "momentum": 0.9}},
        },
        "input": [32, 32, 3],
        "classes": len(names),
        "recipe_name": "default",
        "recipe": {
            "description": "annealed to zero",
            "epochs": epochs,
            "batch_size": 128,
            "optimizer": {"type": "sgd", "learning_rate": 0.1},
            "schedule": {"type": "cosine", "warmup": 0.1},
            "weight_decay": {"rate": 5e-4},
            "augment": {"crop": {"padding": 4}, "flip": "horizontal"},
            "validation_split": 0.1 if validation else 0.0,
        },
        "horizon": epochs,
        "data": {"name": "cifar10", "spec": {"source": {"type": "tfds", "name": "cifar10"}}},
        "precision": {"requested": "auto", "resolved": "mixed_bfloat16"},
        "inference": {
            "mean": [0.49, 0.48, 0.45],
            "std": [0.2, 0.2, 0.2],
            "resize": [32, 32],
            "class_names": names,
        },
    }
    return RunConfig.model_validate(document).model_dump(mode="json", by_alias=True)


def predictions(classes: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and probabilities with some mistakes, a few of them confident."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    logits = 1.1 * rng.normal(size=(count, classes))
    logits[np.arange(count), labels] += 4.6
    logits[:, 1] += np.where(labels == 0, 2.5, 0)
    exponents = np.exp(1.5 * logits)
    return labels, (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32)


def write_metrics(run: Path, epochs: int, validation: bool) -> None:
    """Write metrics.csv and timing.csv as a run does."""
    rng = np.random.default_rng(1)
    rows = ["epoch,step,loss,accuracy,val_loss,val_accuracy,learning_rate"]
    times = ["epoch,seconds,images_per_second,validation_seconds"]
    for epoch in range(1, epochs + 1):
        fall = math.exp(-epoch / 8)
        loss, val = 0.1 + 1.9 * fall, 0.3 + 1.6 * fall + 0.05 * rng.normal()
        held = f"{val:.6f},{1 - val / 2.4:.6f}" if validation else ","
        rate = 0.05 * (1 + math.cos(math.pi * epoch / epochs))
        rows.append(f"{epoch},{epoch * 351},{loss:.6f},{1 - loss / 2.2:.6f},{held},{rate:.8f}")
        speed = 900 if epoch == 1 else 1400 + 20 * rng.normal()
        times.append(f"{epoch},{45000 / speed:.3f},{speed:.2f},2.5")
    (run / "metrics.csv").write_text("\n".join(rows) + "\n")
    (run / "timing.csv").write_text("\n".join(times) + "\n")


def make_run(
    folder: Path,
    names: list[str] | None = None,
    *,
    validation: bool = True,
    finished: bool = True,
    epochs: int = 30,
    count: int = 1000,
) -> Path:
    """Write a run folder."""
    from ruamel.yaml import YAML

    names = CIFAR if names is None else names
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "config.yaml").open("w", encoding="utf-8") as stream:
        YAML(typ="safe", pure=True).dump(config(names, validation), stream)
    write_metrics(folder, epochs, validation)
    environment = {"python": "3.11.2", "tensorflow": "2.21.0", "cpu": "2 cores", "gpus": 0}
    (folder / "environment.json").write_text(json.dumps(environment))
    if finished:
        labels, probabilities = predictions(len(names), count)
        np.savez_compressed(folder / "predictions.npz", labels=labels, probabilities=probabilities)
        summary = {
            "model": "resnet20",
            "dataset": "cifar10",
            "data_remark": "images stored as JPEG, a little harder than the original",
            "recipe": "default",
            "test_accuracy": float(np.mean(probabilities.argmax(axis=1) == labels)),
            "test_loss": 0.3125,
            "epochs": epochs,
            "images_per_second": 1401.7,
            "seconds": 1085.2,
            "params": {"trainable": 269722, "non_trainable": 1376, "total": 271098},
            "run": str(folder),
            "precision": "mixed_bfloat16",
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def read(run: Path) -> Page:
    """Write the report and parse it."""
    return Page(report.write_report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ten classes, its report written."""
    run = make_run(tmp_path_factory.mktemp("ten") / "run")
    report.write_report(run)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A small finished run to damage; three classes draw quickly."""
    return make_run(tmp_path / "run", ["a", "b", "c"], epochs=4, count=60)


def test_ten_classes(ten: Path) -> None:
    page = Page((ten / "report.html").read_text(encoding="utf-8"))
    words = page.words
    accuracy = json.loads((ten / "summary.json").read_text())["test_accuracy"]
    low, high = report.wilson_interval(round(1000 * accuracy), 1000)
    for expected in (
        "resnet20 on cifar10",
        f"{100 * accuracy:.2f} %",
        f"{100 * low:.2f} – {100 * high:.2f} %",
        "of 1,000 test images",
        "271,098",
        "18:05",
        "images stored as JPEG",
        "Confusion matrix",
        "Expected calibration error",
        "Most confident mistakes",
        "kerasnet fit --config config.yaml",
        "He et al. 2015, section 4.2",
        "sgd: learning rate 0.1, momentum 0.9, nesterov",
        "2.21.0",
    ):
        assert expected in words
    assert "Most confused pairs" not in words
    assert "missing" not in words
    pictures = [a["aria-label"] for _, a in page.tags if a.get("role") == "img"]
    assert len(pictures) == 6
    assert all(pictures)


def test_self_contained_with_variables_for_colours(ten: Path) -> None:
    text = (ten / "report.html").read_text(encoding="utf-8")
    check_self_contained(text)
    assert "var(--warm)" in text


def test_tables_have_scopes(ten: Path) -> None:
    page = Page((ten / "report.html").read_text(encoding="utf-8"))
    assert all(a.get("scope") in ("row", "col") for tag, a in page.tags if tag == "th")


def test_same_files_same_bytes(ten: Path) -> None:
    import matplotlib as mpl

    first = (ten / "report.html").read_bytes()
    with mpl.rc_context({"font.size": 30, "axes.grid": False, "svg.hashsalt": "other"}):
        assert report.write_report(ten).read_bytes() == first
    assert not list(ten.glob(".report*"))


def test_thirty_classes_without_validation(tmp_path: Path) -> None:
    names = [f"kind {i:02d}" for i in range(30)]
    words = read(make_run(tmp_path / "run", names, validation=False, epochs=5)).words
    assert "Most confused pairs" in words
    assert "kind 00 kind 01" in words  # the confusion that `predictions` builds in
    assert "Confusion matrix" not in words
    assert "No validation split" in words
    assert "Best validation" not in words


def test_twenty_classes_still_have_a_matrix(tmp_path: Path) -> None:
    names = [f"a rather long class name {i}" for i in range(20)]
    page = read(make_run(tmp_path / "run", names, epochs=1))
    assert "Confusion matrix" in page.words
    assert "a rathe…name 0" in page.words


def test_a_steep_loss_has_readable_labels(run: Path) -> None:
    rows = [f"{e},{e},{10.0 ** (2 - e)},0.5,,,0.1" for e in range(1, 5)]
    (run / "metrics.csv").write_text("\n".join([",".join(report.METRICS), *rows]) + "\n")
    words = read(run).words
    assert "Loss, log scale" in words
    assert "10 1 0.1 0.01" in words or "0.01 0.1 1 10" in words
    assert "mathdefault" not in words


def test_many_classes_show_the_worst(tmp_path: Path) -> None:
    names = [f"kind {i:02d}" for i in range(60)]
    words = read(make_run(tmp_path / "run", names, epochs=2)).words
    assert "The 50 of 60 with the lowest recall" in words


def test_unfinished(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", finished=False, epochs=7)
    words = read(run).words
    assert "This run is unfinished: 7 of 30 epochs" in words
    assert "validation accuracy so far" in words
    assert "predictions.npz is missing or empty" in words


def test_only_a_configuration(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", finished=False)
    for name in ("metrics.csv", "timing.csv", "environment.json"):
        (run / name).write_text("")
    words = read(run).words
    assert "0 of 30 epochs" in words
    for name in ("metrics.csv", "timing.csv", "environment.json"):
        assert f"{name} is missing" in words


def test_header_without_rows(run: Path) -> None:
    (run / "metrics.csv").write_text(",".join(report.METRICS) + "\n")
    assert "metrics.csv is missing or has no rows" in read(run).words


def test_without_configuration(run: Path) -> None:
    (run / "config.yaml").unlink()
    words = read(run).words
    assert "cannot be repeated" in words
    assert "resnet20 on cifar10" in words


def test_no_test_image_mistaken(run: Path) -> None:
    labels = np.array([0, 1, 1])
    probabilities = np.eye(3, dtype=np.float32)[labels]
    np.savez(run / "predictions.npz", labels=labels, probabilities=probabilities)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "test_accuracy": 0.5}))
    words = read(run).words
    assert "No test image was mistaken" in words
    assert "are they from the same run?" in words


@pytest.mark.parametrize("count", [3, 30])
def test_names_are_escaped(tmp_path: Path, count: int) -> None:
    evil = ["<script>alert(1)</script>", '" onload=\'x\' $x_$ id="y"', "a\x00b\n雪 &amp; #010101"]
    names = evil + [f"kind {i}" for i in range(count - 3)]
    run = make_run(tmp_path / "<b>run</b>", names, epochs=2, count=200)
    summary = json.loads((run / "summary.json").read_text())
    summary.update(model="<img src=x>", data_remark="</style><script>")
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "environment.json").write_text(json.dumps({"<i>": "<u>", "nested": {"a": [1]}}))
    page = read(run)
    assert not {"script", "img", "u"} & {tag for tag, _ in page.tags}
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert "<script>alert(1)</script>" in page.words
    assert "$x_$" in page.words
    assert "a�b�雪 &amp; #010101" in page.words
    assert "y" not in page.ids


def test_nan_in_metrics(run: Path) -> None:
    lines = (run / "metrics.csv").read_text().splitlines()
    lines[2] = "2,702,nan,0.5,inf,nan,0.1"
    lines[4] = "4,1404,nan,nan,nan,nan,nan"
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    assert "not finite: shown as gaps" in read(run).words
    rows = [f"{i},{i},nan,nan,nan,nan,nan" for i in range(1, 4)]
    (run / "metrics.csv").write_text("\n".join([lines[0], *rows]) + "\n")
    assert "no finite value" in (read(run) and (run / "report.html").read_text())


def test_last_of_repeated_epochs_and_torn_line(run: Path) -> None:
    head = ",".join(report.METRICS)
    (run / "metrics.csv").write_text(
        f"{head}\n1,10,2,0.1,,,0.1\n2,20,9,0.1,,,0.1\n2,20,1.5,0.4,,,0.1\n3,30,1."
    )
    words = read(run).words
    assert "After epoch 2 (20 steps): train loss 1.5, train accuracy 40.00 %" in words


def write_predictions(run: Path, **arrays: Any) -> None:
    """Replace predictions.npz."""
    np.savez(run / "predictions.npz", **arrays)


UNIFORM = np.full((2, 3), 1 / 3, dtype=np.float32)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.yaml", "a: [1", "config.yaml"),
        ("config.yaml", "seed: 1", "at '"),
        ("config.yaml", "5", "configuration"),
        ("metrics.csv", "epoch,loss\n1,2\n", "no column 'step'"),
        ("metrics.csv", ",".join(report.METRICS) + "\n1,2,x,0,0,0,0\n", "loss in line 2"),
        ("metrics.csv", ",".join(report.METRICS) + "\n1,2\n2,4\n", "7 values in line 2"),
        ("metrics.csv", ",".join(report.METRICS) + "\nnan,2,1,0,0,0,0\n", "epoch's number"),
        ("timing.csv", b"\xff\xfe\x00", "UTF-8"),
        ("environment.json", "{", "JSON"),
        ("environment.json", "[1]", "a JSON object"),
        ("summary.json", '{"model": 3}', "at 'model'"),
        ("predictions.npz", "not an archive", "predictions.npz"),
        ("predictions.npz", b"PK\x03\x04 torn", "predictions.npz"),
        ("predictions.npz", {"labels": np.zeros(2, int)}, "probabilities"),
        ("predictions.npz", {"labels": np.zeros(2), "probabilities": UNIFORM}, "whole-number"),
        ("predictions.npz", {"labels": np.zeros(3, int), "probabilities": UNIFORM}, "3 rows"),
        ("predictions.npz", {"labels": np.array([0, 3]), "probabilities": UNIFORM}, "0 to 2"),
        ("predictions.npz", {"labels": np.zeros(2, int), "probabilities": UNIFORM * 2}, "sum"),
        ("predictions.npz", {"labels": np.zeros(2, int), "probabilities": UNIFORM[:, :2]}, "3 cl"),
        ("predictions.npz", {"labels": np.zeros(2, int), "probabilities": UNIFORM[0]}, "(N, cl"),
        (
            "predictions.npz",
            {"labels": np.zeros(2, int), "probabilities": UNIFORM * np.nan},
            "sum to 1",
        ),
    ],
)
def test_corrupt_files_are_named(
    run: Path, name: str, content: str | bytes | dict[str, Any], said: str
) -> None:
    if isinstance(content, dict):
        write_predictions(run, **content)
    elif isinstance(content, bytes):
        (run / name).write_bytes(content)
    else:
        (run / name).write_text(content)
    with pytest.raises(BadInputError) as caught:
        report.write_report(run)
    assert str(run / name) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


def test_truncated_archive(run: Path) -> None:
    whole = (run / "predictions.npz").read_bytes()
    middle = len(whole) // 3
    damaged = whole[:middle] + bytes(40) + whole[middle + 40 :]
    for content in (whole[: len(whole) // 2], damaged):
        (run / "predictions.npz").write_bytes(content)
        with pytest.raises(BadInputError, match=r"predictions\.npz"):
            report.write_report(run)


def test_a_bare_array_is_no_archive(run: Path) -> None:
    with (run / "predictions.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(BadInputError, match=r"predictions\.npz"):
        report.write_report(run)


def test_wrong_number_of_class_names(run: Path) -> None:
    from ruamel.yaml import YAML

    document = copy.deepcopy(config(["a", "b", "c"]))
    document["inference"]["class_names"] = ["a"]
    with (run / "config.yaml").open("w") as stream:
        YAML(typ="safe", pure=True).dump(document, stream)
    with pytest.raises(BadInputError, match=r"config\.yaml.*class_names"):
        report.write_report(run)


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="run folder"):
        report.write_report(tmp_path / "nowhere")
    with pytest.raises(BadInputError, match="none of them"):
        report.write_report(tmp_path)


def test_a_page_that_cannot_be_written(run: Path) -> None:
    (run / "report.html").mkdir()
    with pytest.raises(EnvironmentFaultError, match=r"report\.html"):
        report.write_report(run)
    assert not list(run.glob(".report*"))


def test_wilson_interval() -> None:
    # 8 of 10 with z = 2: centre (0.8 + 0.2) / 1.4, half 2 / 1.4 · √(0.016 + 0.01).
    low, high = report.wilson_interval(8, 10, z=2.0)
    assert low == pytest.approx(1 / 1.4 - 2 / 1.4 * math.sqrt(0.026))
    assert high == pytest.approx(1 / 1.4 + 2 / 1.4 * math.sqrt(0.026))
    # Newcombe 1998, table I, method 3.
    assert report.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert report.wilson_interval(0, 20) == (0.0, pytest.approx(0.1611, abs=5e-5))
    assert report.wilson_interval(20, 20)[1] == 1.0
    for correct, total in ((0, 0), (-1, 5), (6, 5)):
        with pytest.raises(BadInputError):
            report.wilson_interval(correct, total)


def test_expected_calibration_error() -> None:
    # Bins of one half: {0.3 wrong, 0.5 right}: |0.5 - 0.4|; {0.9 right, 0.7 wrong}: |0.5 - 0.8|.
    confidence, correct = [0.3, 0.5, 0.9, 0.7], [False, True, True, False]
    assert report.expected_calibration_error(confidence, correct, 2) == pytest.approx(0.2)
    assert report.expected_calibration_error([1.0, 1.0], [True, True]) == 0.0
    # A value on an edge belongs to the bin below it.
    assert report.reliability([0.5, 1.0, 0.0], [1, 1, 0], 2).counts.tolist() == [2, 1]
    with pytest.raises(BadInputError):
        report.expected_calibration_error([], [])
    with pytest.raises(BadInputError):
        report.reliability([0.5], [True, False])


def test_import_is_light() -> None:
    heavy = "{'tensorflow', 'keras', 'matplotlib', 'sklearn', 'jinja2'}"
    code = f"import sys, kerasnet.report; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
