"""How many labels does pre-training save? Build, pre-train, fine-tune and evaluate, in one call.

    python tests/benchmarks/experiment_labels.py corpora out [--tasks instruments] [--seeds 0 1 2]

`corpora/unlabelled` holds recordings without labels, `corpora/<task>/train/<class>` and
`corpora/<task>/eval/<class>` those of a task, split so that no source stands on both sides. An
encoder learns from all of it but the `eval` folders; labels are not used. For every share of a
task's labels, the same number per class drawn by each seed, one tagger starts from that encoder
and one from scratch, on the same clips. Logistic regressions tell what is in the features alone:
of each mel band ("baseline"), of the frozen encoder ("frozen"), and of one that has learnt
nothing ("untrained").

Every step is a melstream command, printed as it would be typed, and left out where its result is
there: run the script again and it goes on. `out/results.json` holds all figures.
"""

import argparse
import functools
import itertools
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from melstream.model.encoder import AudioEncoder
from melstream.model.metrics import tagging_metrics
from melstream.shards.dataset import Dataset, open_dataset
from melstream.tools.cli import app
from melstream.tools.model_folder import load_encoder

STARTS = ("baseline", "untrained", "frozen", "scratch", "pre-trained")
FIGURES = ("balanced_accuracy", "mAP", "accuracy")

PRETRAIN_CROP_S = 2
PRETRAIN = {
    "model.overrides.dim": 128,
    "model.overrides.latent_dim": 128,
    "model.overrides.ffn_dim": 384,
    "data.batch_size": 32,
    "data.crop_s": PRETRAIN_CROP_S,
    "data.min_s": 1,
    "mask.share": 0.65,
    "mask.mask_length": 5,
    "mask.n_distractors": 50,
    "optim.lr": 1e-3,
    "optim.warmup_steps": 150,
    "train.checkpoint_every": 500,
    "train.log_every": 50,
}
FINETUNE = {
    "data.batch_size": 32,
    "data.weights.formula": "inverse",
    "optim.warmup_steps": 50,
    "train.checkpoint_every": 10_000,
}
TASKS_HELP = "the encoder learns from the training audio of those named in the first call"
STEPS_HELP = "of fine-tuning on all labels; with fewer, times the square root of their share"
CROP_S = {"instruments": 2, "drums": 1, "environment": 1}  # half of the latter are shorter
FROM_SCRATCH = {key: PRETRAIN[key] for key in PRETRAIN if key.startswith("model.")} | {
    "optim.lr": 1e-3,
    "finetune.head_lr": 1e-3,
}
FROM_ENCODER = {"optim.lr": 1e-3, "finetune.head_lr": 1e-3}


def melstream(*words: object) -> None:
    """Run a melstream command in this process, and show it."""
    print_line(f"\n$ melstream {shlex.join(str(word) for word in words)}")
    code = app([str(word) for word in words], standalone_mode=False)
    if code:
        sys.exit(code)


def settings(values: Mapping[str, object]) -> list[str]:
    """Write settings as options of the command line."""
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def build(corpora: Path, shards: Path, tasks: list[str]) -> None:
    """Build the data sets of the tasks, and one of all that the encoder may learn from."""
    for task in tasks:
        names = {folder.name for folder in (corpora / task).glob("*/*") if folder.is_dir()}
        labels = shards / f"{task}.txt"
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text("".join(f"{name}\n" for name in sorted(names)))
        for split in ("train", "eval"):
            out = shards / task / split
            if not (out / "dataset.json").exists():
                melstream(
                    "build", "folder", corpora / task / split, "--labels", labels, "--out", out
                )
    unlabelled = shards / "unlabelled"
    if not (unlabelled / "dataset.json").exists():
        windows = ("--unlabelled", "--window-seconds", PRETRAIN_CROP_S)
        melstream("build", "folder", corpora / "unlabelled", *windows, "--out", unlabelled)
    if not (shards / "pretrain" / "dataset.json").exists():
        sources = [unlabelled, *(shards / task / "train" for task in tasks)]
        melstream("merge", *sources, "--out", shards / "pretrain")


def pretrain(shards: Path, run: Path, *, steps: int, seed: int) -> None:
    """Pre-train the encoder."""
    if (run / "model").exists():
        return
    changes = settings(PRETRAIN | {"train.steps": steps, "train.seed": seed})
    data = ("--data", shards / "pretrain", "--out", run, "--resume")
    melstream("pretrain", "demo-pretrain", *data, *changes)


def few_labels(full: Path, out: Path, share: float, seed: int) -> Path:
    """Return a data set with a share of the clips of every class, at least one.

    The clips of a smaller share are among those of a larger one with the same seed.
    """
    if share == 1 or (out / "dataset.json").exists():
        return full if share == 1 else out
    dataset = open_dataset(full)
    labels = labels_of(dataset)
    rng = np.random.default_rng(seed)
    kept = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        kept += [dataset.key(row) for row in rows[: max(1, round(share * len(rows)))]]
    ids = out.with_suffix(".txt")
    ids.parent.mkdir(parents=True, exist_ok=True)
    ids.write_text("".join(f"{key}\n" for key in kept))
    melstream("subset", full, "--ids", ids, "--out", out)
    return out


def finetune(
    data: Path, run: Path, encoder: Path | None, *, crop_s: float, seed: int, steps: int
) -> None:
    """Fine-tune one tagger."""
    if (run / "model").exists():
        return
    start = FROM_SCRATCH if encoder is None else FROM_ENCODER
    words = ["--data", data, "--out", run, "--resume"]
    words += [] if encoder is None else ["--encoder", encoder]
    own = {"data.crop_s": crop_s, "train.steps": steps, "train.seed": seed}
    changes = settings(FINETUNE | start | own)
    melstream("finetune", "demo-finetune", *words, *changes)
    if not (run / "model").exists():
        sys.exit("stopped; the same command goes on")


def evaluate(run: Path, held_out: Path) -> dict[str, float]:
    """Return the figures of a tagger on the held-out sources."""
    report = run / "eval.json"
    if not report.exists():
        melstream("evaluate", run, "--data", held_out, "--top", 0, "--out", report)
    content = json.loads(report.read_text())
    return {name: content[name] for name in FIGURES}


def labels_of(dataset: Dataset) -> npt.NDArray[np.int32]:
    """Return the one label of each clip, shape (n_clips,)."""
    return dataset.index.label_ids


@functools.cache
def band_figures(path: Path) -> npt.NDArray[np.float32]:
    """Return mean, deviation, maximum and mean change over time of each mel band of each clip."""
    dataset, figures = open_dataset(path), []
    for row in range(len(dataset)):
        logmel = dataset.read_logmel(row).astype(np.float32)
        change = np.abs(np.diff(logmel, axis=0, prepend=logmel[:1])).mean(axis=0)
        figures.append([logmel.mean(axis=0), logmel.std(axis=0), logmel.max(axis=0), change])
    return np.array(figures).reshape(len(dataset), -1)


@functools.cache
@torch.inference_mode()
def encoder_figures(path: Path, run: Path, is_trained: bool) -> npt.NDArray[np.float32]:
    """Return mean and deviation over time of the latents and of every block's output."""
    encoder, _ = load_encoder(run)
    if not is_trained:
        torch.manual_seed(0)
        untrained = AudioEncoder(encoder.config)
        untrained.normalizer.load_state_dict(encoder.normalizer.state_dict())
        encoder = untrained
    outputs: list[torch.Tensor] = []
    for module in (encoder.feature_encoder, *encoder.context_encoder.blocks):
        module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    encoder.eval()
    dataset, figures = open_dataset(path), []
    for row in range(len(dataset)):
        outputs.clear()
        logmel = dataset.read_logmel(row)
        n_missing = max(0, encoder.config.stride - len(logmel))  # a step needs as many frames
        encoder(torch.from_numpy(np.pad(logmel, ((0, n_missing), (0, 0)), mode="edge"))[None])
        steps = torch.cat(outputs, dim=2)[0]  # (S, channels of all)
        figures.append(torch.cat([steps.mean(dim=0), steps.std(dim=0, correction=0)]).numpy())
    return np.stack(figures)


def regress(
    features: Callable[[Path], npt.NDArray[np.float32]], train: Path, held_out: Path
) -> dict[str, float]:
    """Fit a class-balanced logistic regression and return its figures."""
    regression = LogisticRegression(C=0.1, max_iter=2_000, class_weight="balanced")
    model = make_pipeline(StandardScaler(), regression)
    model.fit(features(train), labels_of(open_dataset(train)))
    n_classes = len(open_dataset(train).manifest.label_names)
    truth = np.eye(n_classes, dtype=bool)[labels_of(open_dataset(held_out))]
    scores = np.zeros(truth.shape)
    scores[:, model.classes_] = model.predict_proba(features(held_out))
    summary = tagging_metrics(scores, truth, "single_label").summary()
    return {name: summary[name] for name in FIGURES}


def run_task(
    arguments: argparse.Namespace, task: str, results: dict[str, dict[str, float]]
) -> None:
    """Train and evaluate everything of a task that is not in the results yet."""
    shards, encoder = arguments.out / "shards" / task, arguments.out / "pretrain"
    full, held_out = shards / "train", shards / "eval"
    features = {
        "baseline": band_figures,
        "untrained": lambda path: encoder_figures(path, encoder, False),
        "frozen": lambda path: encoder_figures(path, encoder, True),
    }
    for share, seed in itertools.product(arguments.shares, arguments.seeds):
        data = few_labels(full, shards / f"train-{round(100 * share)}-{seed}", share, seed)
        for start in arguments.starts:
            name = f"{task} {share:g} {start} {seed}"
            if name in results:
                continue
            began = time.monotonic()
            if start in features:
                figures = regress(features[start], data, held_out)
            else:
                run = arguments.out / "runs" / name.replace(" ", "-")
                finetune(
                    data,
                    run,
                    encoder if start == "pre-trained" else None,
                    crop_s=CROP_S.get(task, PRETRAIN_CROP_S),
                    seed=seed,
                    steps=round(arguments.steps * share**0.5),
                )
                figures = evaluate(run, held_out)
            results[name] = figures | {"wall_s": round(time.monotonic() - began, 1)}
            (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def print_table(results: dict[str, dict[str, float]], tasks: list[str]) -> None:
    """Print mean and deviation over the seeds, one line per task, share and start."""
    runs: dict[tuple[str, float, str], list[dict[str, float]]] = {}
    for name, figures in results.items():
        task, share, start, _ = name.split()
        runs.setdefault((task, -float(share), start), []).append(figures)
    print_line("\n| task | labels | start | seeds | balanced accuracy | mAP |")
    print_line("|---|---|---|---|---|---|")
    for (task, share, start), found in sorted(runs.items()):
        if task in tasks:
            cells = " | ".join(spread([run[name] for run in found]) for name in FIGURES[:2])
            print_line(f"| {task} | {-share:.0%} | {start} | {len(found)} | {cells} |")


def print_line(text: str) -> None:
    """Print a line as it is."""
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def spread(values: list[float]) -> str:
    """Write the mean and the sample deviation."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.3f} ± {deviation:.3f}"


def main() -> None:
    """Do what is not done yet, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpora", type=Path)
    parser.add_argument("out", type=Path)
    tasks = ["instruments", "drums", "environment"]
    parser.add_argument("--tasks", nargs="+", default=tasks, help=TASKS_HELP)
    parser.add_argument("--shares", nargs="+", type=float, default=[1, 0.33, 0.1], help="of labels")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pretrain-steps", type=int, default=2_500)
    parser.add_argument("--pretrain-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=450, help=STEPS_HELP)
    arguments = parser.parse_args()
    build(arguments.corpora, arguments.out / "shards", arguments.tasks)
    pretrain(
        arguments.out / "shards",
        arguments.out / "pretrain",
        steps=arguments.pretrain_steps,
        seed=arguments.pretrain_seed,
    )
    path = arguments.out / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for task in arguments.tasks:
        run_task(arguments, task, results)
    print_table(results, arguments.tasks)


if __name__ == "__main__":
    main()
