"""The demo tells the whole story, once; here with three steps of training each."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from melstream.tools import demo, recipe_file
from melstream.tools.cli import app


@pytest.fixture
def short_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    def shortened(name: str, schema: Any, overrides: Any = ()) -> Any:
        short = ["train.steps=3", "optim.warmup_steps=1", "data.batch_size=4"]
        return recipe_file.load_recipe(name, schema, [*overrides, *short])

    monkeypatch.setattr(demo, "load_recipe", shortened)


def tell(out: Path) -> str:
    console = Console(file=io.StringIO(), width=100)
    demo.run_demo(out, source=None, n_jobs=1, console=console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.slow
@pytest.mark.usefixtures("short_recipes")
def test_the_demo_ends_with_its_table_and_the_paths_of_what_it_made(tmp_path: Path) -> None:
    first = tell(tmp_path / "demo")
    for row in ("majority class │ 0.167", "from scratch", "pre-trained", "24 held-out recordings"):
        assert row in first
    for name in ("shards/train", "shards/eval", "pretrain/model", "finetune-pre-trained-0/model"):
        assert (tmp_path / "demo" / name).is_dir()
    second = tell(tmp_path / "demo")  # nothing is done twice, the results are the same
    assert "nothing new" in second
    table = slice(first.index("24 held-out"), first.index("shards  "))
    assert first[table] in second


@pytest.mark.usefixtures("short_recipes")
def test_an_interrupted_demo_stops_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> demo.Result:
        return demo.Result(step=1, is_complete=False, figures={}, wall_s=0.0)

    monkeypatch.setattr(demo, "pretrain", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tell(tmp_path / "demo")
    assert not (tmp_path / "demo" / "finetune-from-scratch-0").exists()


def test_a_pinned_demo_builds_on_its_own_cores_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(demo, "run_demo", lambda *_, n_jobs, **__: asked.append(n_jobs))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3})
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert CliRunner().invoke(app, ["demo"]).exit_code == 0
    assert asked == [1]
