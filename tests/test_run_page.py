"""What is told of a training run: in words, in the terminal, and on a page in a real browser."""

import io
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from melstream.shards.errors import DatasetError
from melstream.tools import cli
from melstream.tools.run_folder import claimed
from melstream.tools.run_page import print_run, run_facts, run_json
from melstream.tools.run_report import write_run_report
from melstream.tools.run_summary import find_warnings, is_run, read_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HOSTILE = "</script><img src=x onerror=hacked=1>"
ACCURACY = [0.5, 0.7, 0.6, 0.55, 0.55]  # on held-out data, every 20 steps


def write_run(folder: Path, *, task: str | None = "single_label", is_complete: bool = True) -> Path:
    """A run's small files: 10 log entries, 5 validations where there is a task."""
    folder.mkdir(parents=True)
    recipe: dict[str, Any] = {
        "train": {"steps": 100, "precision": "float32"},
        "optim": {"lr": 1e-3},
        "data": {"batch_size": 16, "crop_s": 2.0},
        "model": {"preset": "tiny"},
    }
    if task is not None:
        recipe["tagger"] = {"task": task}
    config = {"recipe": recipe, "fingerprint": "0123456789abcdef"}
    (folder / "config.json").write_text(json.dumps(config))
    entries = []
    for step in range(10, 101, 10):
        wait = 0.9 if step == 10 else 0.02
        entries.append({"step": step, "loss": 30 / step, "lr": 1e-3, "grad_norm": 1.0})
        entries[-1] |= {"samples_per_s": 200.0, "data_wait_share": wait, HOSTILE: step / 2}
        if task is not None and step % 20 == 0:
            entries.append({"step": step, "valid/accuracy": ACCURACY[step // 20 - 1]})
    lines = [json.dumps(entry) for entry in entries]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 110, "lo']))
    (folder / "checkpoints" / "step-000100").mkdir(parents=True)
    if is_complete:
        (folder / "model").mkdir()
    return folder


def write_evaluation(folder: Path, name: str = "evaluation.json") -> None:
    """What ``melstream evaluate --out`` writes: three classes, one without a clip."""
    classes = [
        {"label": "bell", "n_positives": 8, "ap": 0.9, "auc": 0.95, "recall": 0.75},
        {"label": HOSTILE, "n_positives": 2, "ap": 0.2, "auc": 0.6, "recall": 0.0},
        {"label": "absent", "n_positives": 0, "ap": None, "auc": None, "recall": None},
    ]
    found = {"n_clips": 10, "mAP": 0.55, "mAUC": 0.775, "d_prime": 1.07, "n_classes_skipped": 1}
    (folder / name).write_text(json.dumps({**found, "accuracy": 0.6, "classes": classes}))


def test_a_run_is_read_to_its_last_whole_line(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    assert run.step == run.n_steps == 100
    assert run.curves["loss"].steps == tuple(range(10, 101, 10))
    assert run.best == (40, 0.7)
    assert run.checkpoints == (100,)


def test_what_went_wrong_is_told(tmp_path: Path) -> None:
    good = write_run(tmp_path / "good", task=None)
    assert find_warnings(read_run(good)) == []
    bad = write_run(tmp_path / "bad", is_complete=False)
    write_evaluation(bad)
    lines = (bad / "metrics.jsonl").read_text().replace("0.02", "0.4")
    (bad / "metrics.jsonl").write_text(lines)
    codes = [finding.code for finding in find_warnings(read_run(bad))]
    assert codes == ["unfinished", "data_wait", "past_best", "unmeasured"]
    with claimed(bad):
        assert [finding.code for finding in find_warnings(read_run(bad))] == codes[1:]
        assert dict(run_facts(read_run(bad)))["steps"].endswith(", training now")
    rising = [{"step": step, "loss": 1.0 + step / 100} for step in range(10, 70, 10)]
    (good / "metrics.jsonl").write_text("\n".join(map(json.dumps, rising)))
    assert [finding.code for finding in find_warnings(read_run(good))] == ["no_progress"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_curves_are_drawn_to_their_end(tmp_path: Path, width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    print_run(read_run(write_run(tmp_path / "run")), console)
    assert isinstance(console.file, io.StringIO)
    (line,) = (row for row in console.file.getvalue().splitlines() if row.startswith("loss"))
    assert "…" not in line
    assert "▁" in line


def test_a_run_that_its_alarm_ended_says_why(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", task=None, is_complete=False)
    (run / "checkpoints" / "step-000100").rmdir()
    exploding = [
        {"step": step, "grad_norm": 1e9 if step > 60 else 1.0, "skipped_steps": 3}
        for step in range(10, 101, 10)
    ]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, exploding)))
    ill, skips, unfinished = find_warnings(read_run(run))
    assert unfinished.remedy.endswith("it starts over, for it has no checkpoint")
    assert "the gradient explodes" in ill.message
    assert "half of optim.lr" in ill.remedy
    config = json.loads((run / "config.json").read_text())
    config["recipe"]["health"] = {"alarm": "stop"}
    (run / "config.json").write_text(json.dumps(config))
    codes = [finding.code for finding in find_warnings(read_run(run))]
    assert codes == [ill.code, skips.code]  # to go on would end in the same place
    assert skips.message == "3 of 100 steps had a gradient of NaN or inf and were skipped"


def test_facts_name_the_encoder_that_is_trained_and_both_rates(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["encoder"] = {"start": "0123", "n_layers": 5, "dim": 77}
    config["recipe"]["finetune"] = {"head_lr": 0.5}
    config["recipe"]["train"]["average_last"] = 3
    (run / "config.json").write_text(json.dumps(config))
    facts = dict(run_facts(read_run(run)))
    assert facts["model"] == "an encoder of 5 blocks, 77 wide, that was given, float32"
    assert facts["peak learning rate"] == "0.5 of the head, 0.001 of the body"
    config["recipe"]["finetune"]["freeze_body_steps"] = "all"
    (run / "config.json").write_text(json.dumps(config))
    resting = dict(run_facts(read_run(run)))
    assert resting["peak learning rate"] == "0.5 of the head, the body rests"
    assert facts["best step"] == "the mean of the last 3 checkpoints is the model"
    assert "best step" not in dict(run_facts(read_run(write_run(tmp_path / "pre", task=None))))


def test_the_terminal_shows_the_weakest_classes_first(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    console = Console(file=io.StringIO(), width=120)
    print_run(read_run(folder), console)
    write_evaluation(folder)
    print_run(read_run(folder), console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "100 of 100" in text
    assert "40, held-out accuracy 0.700" in text
    assert f"--out {folder / 'evaluation.json'}" in text.replace("\n", "")
    assert text.index(HOSTILE, text.index("class ")) < text.index("bell")
    assert json.loads(run_json(read_run(folder)))["evaluations"][0]["mAP"] == 0.55


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    assert not is_run("s3://bucket/train")
    with pytest.raises(DatasetError, match="is no training run"):
        read_run(tmp_path)
    folder = write_run(tmp_path / "run")
    (folder / "evaluation-1.json").write_text("[]")
    with pytest.raises(DatasetError, match="must be a JSON object, found list"):
        read_run(folder)
    (folder / "evaluation-1.json").write_text("{}")
    with pytest.raises(DatasetError, match="must be written by 'melstream evaluate --out'"):
        read_run(folder)
    for recipe in ("1", "{}", '{"train": {"steps": 9}, "tagger": 1}'):
        (folder / "config.json").write_text(f'{{"recipe": {recipe}}}')
        with pytest.raises(DatasetError, match=r"must hold the recipe of a run with train\.steps"):
            read_run(folder)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(DatasetError, match="must be JSON, found none"):
        read_run(folder)


def test_odd_lines_of_the_log_are_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    odd = ('{"step": 1e999, "loss": 1}', '{"step": 5, "loss": 1' + "0" * 400 + "}", "[" * 100_000)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n" + "\n".join(odd))
    assert read_run(folder).curves["loss"].steps == tuple(range(10, 101, 10))


def test_names_with_terminal_codes_stay_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run\x1b[2J")
    write_evaluation(folder)
    for name in ("metrics.jsonl", "evaluation.json", "config.json"):
        text = (folder / name).read_text()
        for word in ("bell", "grad_norm", "0123456789abcdef"):
            text = text.replace(word, "\\u001b[2J")
        (folder / name).write_text(text)
    console = Console(file=io.StringIO(), width=120)
    print_run(read_run(folder), console)
    assert isinstance(console.file, io.StringIO)
    assert "\x1b" not in console.file.getvalue()
    assert console.file.getvalue().count("\\x1b[2J") >= 4


def test_inspect_knows_a_run_from_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, page = write_run(tmp_path / "run"), tmp_path / "pages" / "run.html"
    arguments = ["melstream", "inspect", str(folder), "--html", str(page)]
    monkeypatch.setattr(sys, "argv", arguments)
    with suppress(SystemExit):
        cli.main()
    out, err = capsys.readouterr()
    assert "held-out accuracy 0.700" in out
    assert "written:" in err
    assert page.stat().st_size > 1_000_000
    monkeypatch.setattr(sys, "argv", [*arguments, "--label", "Dog"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "are for data sets" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_holds_the_curves_and_classes(browser: "Browser", tmp_path: Path) -> None:
    from browser_page import WatchedPage

    folder = write_run(tmp_path / "<b>run")
    write_evaluation(folder)
    size_bytes = write_run_report(folder, tmp_path / "run.html")
    assert size_bytes == (tmp_path / "run.html").stat().st_size < 6_000_000
    opened = WatchedPage(browser, tmp_path / "run.html", color_scheme="light")
    curves = [f"curve-{number}" for number in range(6)]
    assert opened.plots() == ["held-out", *curves, "weakest-0", "classes-0"]
    assert opened.values("curve-0") == [30 / step for step in range(10, 101, 10)]
    assert opened.values("held-out") == ACCURACY
    assert [opened.values("held-out", axis, trace=1) for axis in "xy"] == [[40], [0.7]]
    assert opened.values("weakest-0", "x") == [0.2, 0.9]
    assert opened.page.locator("#classes-table-1 td:first-child").all_text_contents() == [
        HOSTILE, "bell", "absent",
    ]  # fmt: skip
    assert opened.page.locator("img, main b").count() == 0
    opened.page.get_by_label("Find a class").fill("bell")
    assert opened.page.locator("#classes-table-1 tbody tr:visible").count() == 1
    opened.page.get_by_role("button", name="Dark theme").click()
    plot = "document.querySelector('[data-plot=held-out]')._fullLayout.paper_bgcolor"
    assert opened.ask(plot) == "#1b1f24"
    assert opened.ask("window.hacked") is None
    assert opened.faults == []
    opened.close()
