"""The command line as a user types it: exit codes, messages, output for programs."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zarr
from conftest import SPEC

from melstream.model import AudioEncoder, EncoderConfig
from melstream.shards.dataset import Dataset
from melstream.tools import cli
from melstream.tools.model_folder import ModelCard, write_model
from melstream.tools.recipe import PretrainRecipe
from melstream.tools.recipe_file import load_recipe

PRETRAIN = ["pretrain", "demo-pretrain", "--out", "{tmp}/run", "--data"]


def run(
    *arguments: str | Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Run the command line in this process; return exit code, stdout and stderr on one line."""
    monkeypatch.setattr(sys, "argv", ["melstream", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, " ".join(err.split())


@pytest.fixture
def melstream(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    return lambda *arguments: run(*arguments, monkeypatch=monkeypatch, capsys=capsys)


def test_version_and_help_need_no_torch() -> None:
    code = (
        "import sys; from melstream.tools import cli; "
        "assert 'torch' not in sys.modules and 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-Ic", code], check=True)


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_a_look_at_a_data_set_needs_neither_torch_nor_numba(
    small_dataset: Dataset, verb: str
) -> None:
    code = (
        "import sys; from melstream.tools.cli import app; "
        f"app({[verb, small_dataset.url]}, standalone_mode=False); "
        "assert 'torch' not in sys.modules and 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-Ic", code], check=True, capture_output=True)


def test_every_verb_has_help(melstream: Callable[..., tuple[int, str, str]]) -> None:
    verbs = ["inspect", "show", "verify", "index", "subset", "merge", "export-lhotse"]
    verbs += ["pretrain", "finetune", "evaluate", "embed", "export", "demo"]
    verbs += ["doctor"]
    for words in ([], ["build"], ["build", "folder"], ["build", "audioset"], *([v] for v in verbs)):
        code, out, _ = melstream(*words, "--help")
        is_verb = words not in ([], ["build"])
        assert (code, "Usage" in out, "Example: melstream" in out) == (0, True, is_verb), words


def test_build_then_inspect_and_verify(
    melstream: Callable[..., tuple[int, str, str]], recordings: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "eval"
    code, out, _ = melstream(
        "build", "folder", recordings / "eval", "--out", shards, "--json", "--jobs", 1
    )
    assert code == 0
    assert json.loads(out)["n_samples"] == 24
    code, out, _ = melstream("build", "folder", recordings / "eval", "--out", shards, "--jobs", 1)
    assert code == 0
    assert "nothing new" in out
    code, out, _ = melstream("inspect", shards)
    assert code == 0
    assert "24 samples, 16.5 s, 1 shard" in out
    assert "tabla" in out
    code, out, _ = melstream("inspect", shards, "--json")
    assert {c["name"]: c["n_samples"] for c in json.loads(out)["classes"]}["tabla"] == 5
    assert melstream("verify", shards, "--full")[0] == 0
    shard = next(shards.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-512])
    code, _, err = melstream("verify", shards)
    assert code == 1
    assert "must have" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["build", "folder", "{tmp}/nothing", "--out", "{tmp}/out"], 2, "nothing"),
        (["build", "folder", "{tmp}/empty", "--out", "{tmp}/out"], 2, "audio"),
        (["build", "folder", "{tmp}/empty"], 2, "--out"),
        (["build", "nocorpus", "{tmp}/empty"], 2, "nocorpus"),
        (
            ["build", "folder", "{recordings}", "--out", "{tmp}/out", "--features", "mel"],
            2,
            "must be one of conformer64, kaldi128",
        ),
        (
            ["build", "audioset", "{tmp}/empty", "--out", "{tmp}/out", "--segments", "{tmp}/no.csv",
             "--class-labels", "{tmp}/no.csv"],
            2,
            "no.csv",
        ),
        (["inspect", "{tmp}/empty"], 2, "build one with 'melstream build'"),
        (["pretrain", "none", "--data", "{tmp}", "--out", "{tmp}/run"], 2, "no recipe 'none'"),
        (
            [*PRETRAIN, "{tmp}", "--set", "optim.rl=1"],
            2,
            "unknown key `optim.rl`",
        ),
        ([*PRETRAIN, "{tmp}/empty"], 2, "no data set"),
        (
            [*PRETRAIN, "{tmp}", "--device", "abacus"],
            2,
            "must be auto, cpu, cuda",
        ),
        (
            ["finetune", "demo-finetune", "--out", "{tmp}/run", "--data", "{tmp}/empty",
             "--set", "train.validate_every=5"],
            2,
            "`--set train.validate_every=5` needs held-out data; give --valid or "
            "--valid-split, or leave it out",
        ),
        (["evaluate", "{tmp}/empty", "--data", "{tmp}/empty"], 2, "no model at"),
        (["pretrain", "demo-pretrain", "--data", "a"], 2, "`--out` is required"),
        (["finetune", "demo-finetune"], 2, "`--data` is required"),
        (
            [*PRETRAIN, "{tmp}/empty", "--set", "model.overrides.n_mels=13"],
            2,
            "`model.overrides.n_mels` must be left out: the data set gives it",
        ),
        (
            ["pretrain", "demo-pretrain", "--data", "{tmp}/empty", "--out", "{tmp}/run",
             "--encoder", "{tmp}/empty", "--set", "model={{preset='tiny'}}"],
            2,
            "`--set model.…` is for a model from scratch",
        ),
        (
            ["pretrain", "demo-pretrain", "--data", "{tmp}/empty", "--out", "s3://bucket/run"],
            2,
            "must be on a disk of this machine",
        ),
        (
            [*PRETRAIN, "{tmp}/empty", "--set", "data.cache.folder=s3://bucket/cache"],
            2,
            "must be on a disk of this machine, found s3://bucket/cache",
        ),
        (["inspect", "{tmp}/empty", "--html", "{tmp}/empty"], 2, "found the folder"),
        (["demo", "--source", "{tmp}/nothing"], 2, "must be a folder of audio files"),
    ],
)  # fmt: skip
def test_a_wrong_call_says_what_is_wrong_and_leaves_nothing(
    melstream: Callable[..., tuple[int, str, str]],
    recordings: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    words = [word.format(tmp=tmp_path, recordings=recordings) for word in arguments]
    found_code, _, err = melstream(*words)
    assert message in err
    assert found_code == code
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("window", [[], ["--window-seconds", 0.1]], ids=["whole", "windows"])
def test_too_many_rejects_make_the_build_fail_but_lose_nothing(
    melstream: Callable[..., tuple[int, str, str]],
    recordings: Path,
    tmp_path: Path,
    window: list[str | float],
) -> None:
    source = tmp_path / "corpus" / "a"
    source.mkdir(parents=True)
    (source / "text.wav").write_text("no audio")
    good = next((recordings / "eval").rglob("*.flac"))
    (source / "good.flac").write_bytes(good.read_bytes())
    arguments = ["build", "folder", source.parent, "--out", tmp_path / "out", "--jobs", 1, *window]
    code, out, err = melstream(*arguments)
    assert code == 1
    assert "50.0% of the files were rejected, more than --max-rejects 10.0%" in err
    assert "undecodable" in out
    assert (tmp_path / "out" / "dataset.json").exists()
    assert melstream(*arguments, "--max-rejects", 0.5)[0] == 0


def test_a_disk_without_room_names_the_file_and_the_remedy(
    melstream: Callable[..., tuple[int, str, str]],
    built: Callable[[str], Dataset],
    tmp_path: Path,
) -> None:
    data = built("eval").folder
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, limits[1]))
    try:
        code, _, err = melstream("subset", data, "--out", tmp_path / "out", "--where", "n_frames>1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert f"File too large: '{tmp_path}/out/" in err
    assert "make room and type the same command again" in err


def test_names_from_the_data_are_never_read_as_markup(
    melstream: Callable[..., tuple[int, str, str]], recordings: Path, tmp_path: Path
) -> None:
    source = tmp_path / "corpus" / "[bold]loud["
    source.mkdir(parents=True)
    good = next((recordings / "eval").rglob("*.flac"))
    (source / "[red]a.flac").write_bytes(good.read_bytes())
    melstream("build", "folder", source.parent, "--out", tmp_path / "[out]", "--jobs", 1)
    code, out, _ = melstream("inspect", tmp_path / "[out]")
    assert code == 0
    assert "[bold]loud[" in out


@pytest.mark.parametrize("verb", [["evaluate", "run"], ["finetune", "demo-finetune", "--out", "x"]])
def test_a_second_data_set_is_refused_where_one_is_meant(
    melstream: Callable[..., tuple[int, str, str]], verb: list[str]
) -> None:
    code, _, err = melstream(*verb, "--data", "a", "--data", "b")
    assert code == 2
    assert "must be one data set here, found 2; make one of them with" in " ".join(err.split())


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_sizes_of_a_model_do_not_go_with_an_encoder(
    melstream: Callable[..., tuple[int, str, str]], tmp_path: Path, verb: str
) -> None:
    code, _, err = melstream(
        verb, f"demo-{verb}", "--data", "a", "--out", tmp_path / "out", "--encoder", "b",
        "--set", "model.preset=cf-l",
    )  # fmt: skip
    assert code == 2
    assert "--encoder has sizes of its own; leave one out" in err


def test_print_config_resolves_the_recipe(
    melstream: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, out, _ = melstream(
        "pretrain", "demo-pretrain", "--print-config", "--set", "optim.lr=0.125"
    )
    assert code == 0
    (tmp_path / "mine.toml").write_text(out)
    expected = load_recipe("demo-pretrain", PretrainRecipe, ["optim.lr=0.125"])
    assert load_recipe(str(tmp_path / "mine.toml"), PretrainRecipe) == expected


def test_evaluate_prints_and_writes_the_same_figures(
    melstream: Callable[..., tuple[int, str, str]],
    built: Callable[[str], Dataset],
    tmp_path: Path,
) -> None:
    data = built("eval").folder
    code, _, _ = melstream(
        "finetune", "demo-finetune", "--data", data, "--out", tmp_path / "run", "--device", "cpu",
        "--set", "train.steps=3", "--set", "optim.warmup_steps=1",
        "--set", "model.overrides.n_layers=1",
    )  # fmt: skip
    assert code == 0
    report = tmp_path / "report.json"
    evaluate = ["evaluate", tmp_path / "run", "--data", data, "--device", "cpu"]
    code, out, _ = melstream(*evaluate, "--json", "--out", report)
    assert code == 0
    assert json.loads(out) == json.loads(report.read_text())
    assert {"mAP", "mAUC", "d_prime", "accuracy", "classes"} <= json.loads(out).keys()
    code, out, _ = melstream(*evaluate)
    assert "weakest first" in out
    code, out, _ = melstream(*evaluate, "--top", 0)
    assert (code, "weakest" in out, "mAP" in out) == (0, False, True)


def test_embed_says_what_it_left_out(
    melstream: Callable[..., tuple[int, str, str]], recordings: Path, tmp_path: Path
) -> None:
    config = EncoderConfig(latent_dim=8, dim=8, n_layers=1, n_heads=2, ffn_dim=8)
    card = ModelCard(
        kind="encoder", encoder=config, features=SPEC, crop_s=1.0, trained_on=(), steps=1
    )
    write_model(tmp_path / "model", AudioEncoder(config).state_dict(), card)
    (tmp_path / "[bad].wav").write_bytes(b"not audio")
    sources = [recordings / "eval", tmp_path / "[bad].wav"]
    code, out, err = melstream("embed", tmp_path / "model", *sources, "--out", tmp_path / "z")
    assert code == 1
    assert out.startswith("24 clips: ")
    assert "left out: " in err
    assert "[bad].wav: audio is required" in err
    assert zarr.open_group(str(tmp_path / "z"), mode="r")["clips"].shape == (24, 8)


def test_doctor_finds_what_works_and_what_does_not(
    melstream: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = melstream("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(out)}
    assert code == 0
    assert findings["torchaudio"]["is_ok"]
    assert findings["decode Opus in WebM (PyAV)"]["detail"].endswith("by pyav")
    monkeypatch.setitem(sys.modules, "torchaudio", None)  # its import fails
    code, out, _ = melstream("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(out)}
    assert code == 1
    assert not findings["torchaudio"]["is_ok"]
    assert "torch>=2.11,<2.12" in findings["torchaudio"]["remedy"]
