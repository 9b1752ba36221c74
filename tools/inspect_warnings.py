"""What in a data set will cost a training run, and what to do about it.

Each rule looks at an ``Inspection`` and finds one thing or none; the thresholds are what a
careful maker of data sets would want to be told of, and stand here with their reasons.
"""

import shlex
from collections.abc import Callable, Sequence
from statistics import median

from ..shards.errors import listed
from .hours import percent
from .inspect_figures import CLIPPED, DC_OFFSET, NARROW_BAND, SILENT
from .inspection import Finding, Inspection, Leak, RejectFigures
from .text_tables import many

DUPLICATE_SHARE = 0.01
SILENT_SHARE = 0.01
NARROW_SHARE = 0.3
CLIPPED_SHARE = 0.25  # loud music and single drum hits are, by intent
DC_SHARE = 0.2  # short sounds have some by nature
SHORT_SHARD = 0.6  # of the median shard, in samples and in bytes: a build evens out one of them
IMBALANCE = 100  # of the largest class to the smallest that has clips
UNLABELLED_SHARE = 0.01
REJECT_SHARE = 0.05
DEAD_BAND_STD = 0.05  # normalisation would divide by it
NOT_FOUND = ("missing", "tail")  # reasons that say nothing against a file

SHARED = {  # of one clip, and of several
    "key": ("has the key of one", "have the keys of some"),
    "audio": ("has the same audio as one", "have the same audio as some"),
    "recording": ("is of the same recording as one", "are of the same recordings as some"),
}

Rule = Callable[[Inspection], Finding | None]


def find_warnings(found: Inspection) -> tuple[Finding, ...]:
    """Apply every rule, the gravest first."""
    return tuple(finding for rule in RULES if (finding := rule(found)) is not None)


def leak_findings(leaks: Sequence[Leak], side: str = "") -> tuple[Finding, ...]:
    """Say what stands on both sides of a line.

    Args:
        leaks: found between two splits, or two data sets.
        side: put before their names.
    """
    return tuple(
        Finding(
            code=f"leak_{leak.kind}",
            message=f"{many(leak.n_samples, 'clip')} of {side}{leak.one} "
            f"{SHARED[leak.kind][leak.n_samples > 1]} of {side}{leak.other}, such as "
            f"{listed(leak.examples)}",
            remedy="scores on one are worth nothing after training on the other: leave out of the "
            "one to train on what the other has, by 'melstream subset TRAIN --out NEW --not-in "
            "EVAL'; splits of one set become sets of their own by 'melstream subset URL --out NEW "
            "--split NAME'",
        )
        for leak in leaks
    )


def _leaks(found: Inspection) -> Finding | None:
    findings = leak_findings(found.leaks, "split ")
    if not findings:
        return None
    message = "; ".join(finding.message for finding in findings)
    return findings[0].model_copy(update={"code": "leak", "message": message})


def _empty_classes(found: Inspection) -> Finding | None:
    empty = [figures.name for figures in found.classes if not figures.n_samples]
    if not empty or found.label is not None:
        return None
    return Finding(
        code="empty_classes",
        message=f"{len(empty):,} of {len(found.classes):,} classes have no clip: {listed(empty)}",
        remedy="a model cannot learn them and their average precision is undefined; "
        "coverage.json and missing.txt say which of their clips were listed and not found",
    )


def _duplicates(found: Inspection) -> Finding | None:
    if found.duplicates is None:
        return None
    share = found.duplicates.n_redundant / found.totals.n_samples
    if share < DUPLICATE_SHARE:
        return None
    return Finding(
        code="duplicates",
        message=f"{found.duplicates.n_redundant:,} samples ({percent(share)}) have exactly the "
        f"audio of another, such as {listed(found.duplicates.examples[0][:2])}",
        remedy="leave them out: " + _subset(found, "--drop-duplicates"),
    )


def _silent(found: Inspection) -> Finding | None:
    flag = found.flag("silent")
    if flag.share < SILENT_SHARE:
        return None
    return Finding(
        code="silent",
        message=f"{flag.n_samples:,} samples ({percent(flag.share)}) are nearly silent: "
        f"{percent(SILENT)} of them or more is under -60 dBFS",
        remedy="leave them out: " + _subset(found, f'--where "silence_share<{SILENT}"'),
    )


def _narrow_band(found: Inspection) -> Finding | None:
    flag, fmax = found.flag("narrow_band"), float(found.features["fmax"])
    if flag.share < NARROW_SHARE:
        return None
    limit_hz = NARROW_BAND * fmax
    return Finding(
        code="narrow_band",
        message=f"{flag.n_samples:,} samples ({percent(flag.share)}) have no sound above "
        f"{limit_hz:,.0f} Hz, the features reach to {fmax:,.0f} Hz: telephones, low sample "
        "rates, lossy files, or sounds that are dull",
        remedy="where they differ by class, or from what the model will hear, it learns the "
        "recorder; leave them out: " + _subset(found, f'--where "bandwidth_hz>{limit_hz:.0f}"'),
    )


def _short_shards(found: Inspection) -> Finding | None:
    shards = found.shards[:-1]  # the last one holds what is left when the others are full
    if len(shards) < 2 or found.label is not None:
        return None
    n_samples = median(shard.n_samples for shard in shards)
    size_bytes = median(shard.size_bytes for shard in shards)
    short = [
        f"{shard.name} ({shard.n_samples:,})"
        for shard in shards
        if shard.n_samples < SHORT_SHARD * n_samples and shard.size_bytes < SHORT_SHARD * size_bytes
    ]
    if not short:
        return None
    return Finding(
        code="short_shards",
        message=f"{len(short):,} of {len(found.shards):,} shards hold far fewer samples than the "
        f"median of {n_samples:,.0f}: {listed(short)}",
        remedy="if a build was cut or files were missing, build again; otherwise cut all shards "
        "evenly: " + _subset(found),
    )


def _imbalance(found: Inspection) -> Finding | None:
    counts = [figures.n_samples for figures in found.classes if figures.n_samples]
    if found.label is not None or len(counts) < 2 or max(counts) < IMBALANCE * min(counts):
        return None
    return Finding(
        code="imbalance",
        message=f"the largest class has {max(counts) / min(counts):,.0f} times the clips of the "
        f"smallest ({max(counts):,} and {min(counts):,})",
        remedy="sample by class when you train, or the rare ones are never learnt",
    )


def _unlabelled(found: Inspection) -> Finding | None:
    share = found.n_unlabelled / found.totals.n_samples
    has_labels = any(figures.n_samples for figures in found.classes)
    if not has_labels or share < UNLABELLED_SHARE:
        return None
    return Finding(
        code="unlabelled",
        message=f"{found.n_unlabelled:,} samples ({percent(share)}) have no label, the others do",
        remedy="they count as negatives of every class when a tagger is trained; leave them "
        "out: " + _subset(found, '--where "n_labels>=1"'),
    )


def _rejects(found: Inspection) -> Finding | None:
    reasons = [r for r in found.rejects if r.reason not in NOT_FOUND]
    n_inputs = sum(r.n_inputs for r in reasons)
    if found.coverage is None:
        n_bad = n_inputs
        share = n_bad / (n_bad + found.totals.n_samples)
    else:  # of a set of windows the samples are not what was found
        n_bad, share = found.coverage.n_rejected, found.coverage.rejected_share
    if share < REJECT_SHARE or found.label is not None or not reasons:
        return None
    return Finding(
        code="rejects",
        message=f"{n_bad:,} files ({percent(share)}) could not be used, "
        f"{_why(reasons, n_bad, n_inputs)}",
        remedy="rejects.jsonl names each; mend or download them again, then 'melstream build … "
        "--retry-failed' adds them",
    )


def _why(reasons: Sequence[RejectFigures], n_files: int, n_inputs: int) -> str:
    """Say why files were rejected; with the windows of others the counts do not tell of which."""
    if n_inputs == n_files:
        worst = reasons[0]
        return f"most of them {worst.reason} ({worst.n_inputs:,}): {worst.meaning}"
    named = listed([f"{r.reason} ({r.n_inputs:,})" for r in reasons])
    return f"for these reasons, windows of other files counted too: {named}"


def _clipped(found: Inspection) -> Finding | None:
    flag = found.flag("clipped")
    if flag.share < CLIPPED_SHARE:
        return None
    return Finding(
        code="clipped",
        message=f"{flag.n_samples:,} samples ({percent(flag.share)}) are overdriven: "
        f"{percent(CLIPPED)} of their waveform or more is at full scale",
        remedy="if what the model will hear is not, leave them out: "
        + _subset(found, f'--where "clipped_share<{CLIPPED}"'),
    )


def _dc_offset(found: Inspection) -> Finding | None:
    flag = found.flag("dc_offset")
    if flag.share < DC_SHARE:
        return None
    return Finding(
        code="dc_offset",
        message=f"{flag.n_samples:,} samples ({percent(flag.share)}) are off zero by "
        f"{percent(DC_OFFSET)} of full scale or more: a fault of the recorder",
        remedy="it shows in the lowest mel bands; rebuild with features that remove it, such as "
        "'melstream build --features kaldi128'",
    )


def _dead_bands(found: Inspection) -> Finding | None:
    if found.bands is None:
        return None
    dead = [i for i, std in enumerate(found.bands.std) if std < DEAD_BAND_STD]
    if not dead:
        return None
    named = listed([f"{i} ({found.bands.centre_hz[i]:,.0f} Hz)" for i in dead])
    return Finding(
        code="dead_bands",
        message=f"{len(dead)} of {len(found.bands.std)} mel bands hardly change: {named}",
        remedy="they carry nothing; choose fmin, fmax and n_mels that fit what was recorded",
    )


def _subset(found: Inspection, options: str = "") -> str:
    """Write a command that a shell takes as it is."""
    return f"melstream subset {shlex.quote(found.url)} --out NEW {options}".rstrip()


RULES: tuple[Rule, ...] = (
    _leaks,
    _duplicates,
    _silent,
    _narrow_band,
    _empty_classes,
    _imbalance,
    _unlabelled,
    _rejects,
    _short_shards,
    _clipped,
    _dc_offset,
    _dead_bands,
)
