"""A run that learns nothing is found out by its log, and told why and what to do."""

import numpy as np
import pytest

from melstream.tools.health import (
    N_FIRST,
    N_RECENT,
    Circumstances,
    Entry,
    HealthConfig,
    find_illness,
)

CONTRASTIVE = Circumstances(warmup_steps=100, n_steps=100_000)
CONFIG = HealthConfig(learns_within=1_000)


def log(n_entries: int, **figures: list[float] | float) -> list[Entry]:
    """Entries every 100 steps; a list of figures stands at the end of the log."""
    healthy: dict[str, list[float] | float] = {
        "accuracy": 0.5,
        "chance": 1 / 101,
        "target_std": 0.6,
        "grad_norm": 1.0,
        "code_perplexity": 150.0,
    }
    entries: list[Entry] = [{"step": 100 * (number + 1)} for number in range(n_entries)]
    for name, values in (healthy | figures).items():
        column = values if isinstance(values, list) else [values] * n_entries
        for entry, value in zip(entries[-len(column) :], column, strict=True):
            entry[name] = value
    return entries


def test_a_healthy_run_is_left_alone() -> None:
    for n_entries in range(40):
        assert find_illness(log(n_entries), CONFIG, CONTRASTIVE) is None


@pytest.mark.parametrize(
    ("entries", "cause", "remedy"),
    [
        (log(5, target_std=1e-5), "the targets have collapsed.*1.0e-05", "third of optim.lr"),
        (log(5, code_perplexity=1.1), "codebooks have collapsed.*1.10 codes", "diversity_weight"),
        (
            log(20, grad_norm=[1.0] * 15 + [300.0] * N_RECENT),
            "gradient explodes: its norm is at least 300 now and was 1",
            "half of optim.lr",
        ),
        (
            log(8, grad_norm=[1.0] * 5 + [1e6] * N_RECENT),
            "gradient explodes: its norm is at least 1e.06 now and was 1",
            "twice optim.warmup_steps",
        ),
        (
            log(40, grad_norm=[1.3**number for number in range(40)]),
            "gradient explodes",
            "half of optim.lr",
        ),
        (
            log(14, accuracy=0.011),
            "after 1400 steps contrastive accuracy is 1.10%, a guess gives 0.99%",
            "shorter mask.mask_length",
        ),
    ],
)
def test_an_illness_has_a_cause_and_a_remedy(entries: list[Entry], cause: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=f"{cause}.*Usual causes: .*Usual remedy: .*{remedy}"):
        raise ValueError(find_illness(entries, CONFIG, CONTRASTIVE))


@pytest.mark.parametrize(
    "entries",
    [
        log(11, accuracy=0.01),  # warm-up and patience are not over
        log(20, accuracy=[0.5] * 17 + [0.0, 0.0, 0.3]),
        log(20, target_std=[1.0] * 18 + [0.0] * (N_RECENT - 1)),
        log(20, grad_norm=[1.0] * 18 + [900.0] * (N_RECENT - 1)),
        log(N_FIRST + N_RECENT - 1, grad_norm=[1.0] * 4 + [900.0] * N_RECENT),  # no usual yet
        [{"step": 9_000.0 + n, "grad_norm": 1.0} for n in range(20)],  # fine-tuning
    ],
)
def test_a_moment_of_weakness_is_no_illness(entries: list[Entry]) -> None:
    assert find_illness(entries, CONFIG, CONTRASTIVE) is None


def test_who_does_not_contrast_cannot_be_at_chance() -> None:
    entries = log(40, accuracy=0.0)
    for entry in entries:
        del entry["chance"]
    assert find_illness(entries, CONFIG, Circumstances(warmup_steps=0, n_steps=9_000)) is None


def test_an_alarm_that_is_off_says_nothing() -> None:
    assert find_illness(log(5, target_std=0.0), HealthConfig(alarm="off"), CONTRASTIVE) is None


@pytest.mark.parametrize(("accuracy", "is_ill"), [(0.2, True), (0.22, True), (0.25, False)])
def test_few_masked_steps_leave_a_guess_many_chances(accuracy: float, is_ill: bool) -> None:
    """By odds: of 1 in 6, one and a half times as much is 3 in 13."""
    entries = log(40, accuracy=accuracy, chance=1 / 6)
    assert (find_illness(entries, CONFIG, CONTRASTIVE) is not None) is is_ill


def test_a_body_that_thaws_brings_its_gradient_along() -> None:
    entries = log(30, grad_norm=[0.02] * 20 + [3.0] * 10)
    thawing = Circumstances(100, 3_000, thaw_step=2_000)
    for n_entries in range(20, 31):
        assert find_illness(entries[:n_entries], CONFIG, thawing) is None
    assert find_illness(entries, CONFIG, Circumstances(100, 3_000)) is not None
    entries += [{"step": 3_000.0 + n, "grad_norm": 400.0} for n in range(1, 4)]
    assert find_illness(entries, CONFIG, thawing) is not None


@pytest.mark.parametrize(
    ("n_steps", "last_step", "is_ill"),
    [(600, 380, False), (600, 600, True), (300, 300, False), (9_000, 1_100, False)],
)
def test_a_short_run_at_chance_is_found_out_before_its_end(
    n_steps: int, last_step: int, is_ill: bool
) -> None:
    """Half of what follows the warm-up is patience enough, and 200 steps never too much."""
    entries = log(last_step // 20, accuracy=0.01)
    for number, entry in enumerate(entries, start=1):
        entry["step"] = 20 * number
    circumstances = Circumstances(warmup_steps=100, n_steps=n_steps)
    assert (find_illness(entries, CONFIG, circumstances) is not None) is is_ill


@pytest.mark.parametrize("seed", range(20))
def test_a_norm_that_falls_or_wanders_does_not_explode(seed: int) -> None:
    rng = np.random.default_rng(seed)
    falling = 5 * np.exp(-np.arange(400) / rng.uniform(20, 200)) + 0.3
    wandering = falling * np.exp(rng.normal(0, 0.5, 400)) * np.linspace(1, rng.uniform(1, 6), 400)
    assert find_illness(log(400, grad_norm=wandering.tolist()), CONFIG, CONTRASTIVE) is None


def test_a_norm_that_comes_back_from_a_plateau_does_not_explode() -> None:
    back = np.concatenate([np.full(5, 0.1), np.full(20, 2e-4), np.geomspace(2e-4, 0.1, 40)])
    for n_entries in range(1, len(back) + 1):
        entries = log(n_entries, grad_norm=back[:n_entries].tolist())
        assert find_illness(entries, CONFIG, CONTRASTIVE) is None
