"""What ``melstream inspect`` finds: one frozen record that every page is made of.

The terminal page, the HTML page and ``--json`` show this and nothing else. Its JSON schema
stands in ``inspection.schema.json`` beside this file. Shares are in [0, 1], times in seconds,
frequencies in Hz. What nobody recorded is None or counted as unknown, never zero.
"""

from pydantic import BaseModel, ConfigDict, Field

from .coverage import Counts


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Finding(_Record):
    """Something that will cost a training run, and what to do about it."""

    code: str = Field(description="short name of the kind, such as `duplicates`")
    message: str = Field(description="what was found, with its numbers")
    remedy: str = Field(description="what to do, with the command where there is one")


class Totals(_Record):
    """How much there is."""

    n_samples: int
    n_shards: int
    size_bytes: int = Field(description="of all tars")
    n_frames: int = Field(description="log-mel frames")
    duration_s: float = Field(description="audio in all samples")
    has_audio: bool = Field(description="whether samples keep their waveform")


class Histogram(_Record):
    """How one figure is spread over the samples.

    Bin i holds ``edges[i] <= value < edges[i + 1]``, the last one its upper edge too. The edges
    are the same for every data set with the same features, so that two can be laid over each
    other.
    """

    name: str = Field(description="column of the index, such as `rms_dbfs`")
    unit: str = Field(description="of edges and quantiles; empty for shares")
    edges: tuple[float, ...] = Field(description="n + 1 bounds of n bins, ascending")
    counts: tuple[int, ...] = Field(description="samples by bin")
    n_below: int = Field(description="samples under the first edge")
    n_above: int = Field(description="samples over the last edge")
    n_unknown: int = Field(description="samples for which it was not recorded")
    quantiles: tuple[float, float, float, float, float] | None = Field(
        description="smallest, 25 %, median, 75 %, largest; none where all are unknown"
    )


class Flag(_Record):
    """A fault that a sample can have, and how many have it."""

    name: str = Field(description="`silent`, `narrow_band`, `clipped` or `dc_offset`")
    bound: str = Field(description="on a column, as `melstream subset --where` takes it")
    n_samples: int = Field(description="within the bound")
    n_known: int = Field(description="samples for which the column was recorded")

    @property
    def share(self) -> float:
        """Share of the samples that are known."""
        return self.n_samples / self.n_known if self.n_known else 0.0


class ShardFigures(_Record):
    """One shard."""

    name: str
    n_samples: int
    size_bytes: int


class ClassFigures(_Record):
    """One class."""

    name: str
    own_id: str | None = Field(description="the corpus's own id, such as an AudioSet mid")
    n_samples: int = Field(description="samples with this label")
    duration_s: float = Field(description="audio of these samples")


class CoOccurrence(_Record):
    """How often two of the most frequent classes stand on one sample."""

    classes: tuple[str, ...] = Field(description="the most frequent first")
    counts: tuple[tuple[int, ...], ...] = Field(
        description="samples with both labels; square and symmetric, the diagonal has the class"
    )


class Count(_Record):
    """How many of something: a split, a sample rate, a number of labels."""

    value: int
    n_samples: int


class SplitFigures(_Record):
    """One of the corpus's own splits or folds."""

    name: str
    n_samples: int


class RejectFigures(_Record):
    """Inputs that are not in the set, for one reason."""

    reason: str
    n_inputs: int
    meaning: str


class Bands(_Record):
    """The log-mel per mel band, over all frames of the set."""

    centre_hz: tuple[float, ...] = Field(description="where each band's triangle has its tip")
    mean: tuple[float, ...] = Field(description="natural log of power")
    std: tuple[float, ...] = Field(description="natural log of power")
    value_edges: tuple[float, ...] = Field(
        description="257 bounds of the 256 bins of `value_counts`, natural log of power"
    )
    value_counts: tuple[tuple[int, ...], ...] | None = Field(
        description="frames by band and bin, (n_mels, 256); none where not recorded, as in sets "
        "of an older melstream"
    )


class Duplicates(_Record):
    """Samples with exactly the same audio."""

    n_groups: int = Field(description="recordings that stand more than once")
    n_redundant: int = Field(description="samples that could go: all but one of each group")
    examples: tuple[tuple[str, ...], ...] = Field(description="keys of some groups")


class Leak(_Record):
    """Samples that stand on both sides of a line that must divide them."""

    kind: str = Field(description="`audio`: same decoded audio; `key`; `recording`: cut from one")
    one: str = Field(description="the split, or the data set, on one side")
    other: str = Field(description="and on the other")
    n_samples: int = Field(description="samples of `one` that stand in `other` too")
    examples: tuple[str, ...] = Field(description="keys of some of them")


class Drift(_Record):
    """How far one figure is from where it is in another data set."""

    name: str = Field(description="what is compared, such as `rms_dbfs`")
    measure: str = Field(description="how; 0 is no difference for each of them")
    value: float
    verdict: str = Field(description="`same`, `small`, `moderate` or `large`")
    detail: str = Field(description="the difference in words, with its numbers")


class ClassDrift(_Record):
    """One class's share of the labels in both data sets."""

    name: str
    share: float
    other_share: float


class SampleCheck(_Record):
    """Samples that were read and compared with their row of the index."""

    keys: tuple[str, ...] = Field(description="that were read")
    problems: tuple[str, ...] = Field(description="one line each; empty: all is as the index says")


class Clip(_Record):
    """All that is known of one sample without reading it."""

    key: str
    row: int = Field(description="of the index")
    shard: str
    logmel_offset: int = Field(description="of the payload in the tar, in bytes")
    logmel_size: int = Field(description="in bytes")
    labels: tuple[str, ...]
    split: str | None
    n_frames: int
    start_s: float | None = Field(description="in its original recording")
    duration_s: float | None
    sample_rate: int | None = Field(description="of the original file, Hz")
    n_channels: int | None = Field(description="of the original file")
    peak: float | None = Field(description="full scale is 1")
    rms_dbfs: float | None
    clipped_share: float | None
    silence_share: float | None
    dc_offset: float | None
    bandwidth_hz: float | None
    audio_hash: str | None = Field(description="16 hex digits, equal for exact duplicates")
    n_same_audio: int = Field(description="other samples with exactly this audio")


class Inspection(_Record):
    """What there is to say about a data set."""

    url: str
    fingerprint: str
    melstream_version: str = Field(description="that built it")
    corpus: str = Field(description="that it was built from")
    label: str | None = Field(description="the class that the samples are of; none: all samples")
    features: dict[str, str | int | float | bool] = Field(description="the spec and its `hash`")
    warnings: tuple[Finding, ...] = Field(description="what matters first")
    totals: Totals
    shards: tuple[ShardFigures, ...]
    splits: tuple[SplitFigures, ...]
    classes: tuple[ClassFigures, ...] = Field(description="in the order of label ids")
    n_unlabelled: int = Field(description="samples without a label")
    labels_per_sample: tuple[Count, ...] = Field(description="ascending by number of labels")
    co_occurrence: CoOccurrence | None = Field(description="none with fewer than two classes")
    sample_rates: tuple[Count, ...] = Field(
        description="of the original files in Hz, 0 where unknown, ascending"
    )
    n_channels: tuple[Count, ...] = Field(description="of the original files, 0 where unknown")
    histograms: tuple[Histogram, ...] = Field(
        description="`duration_s`, `rms_dbfs`, `peak`, `clipped_share`, `silence_share`, "
        "`bandwidth_hz`, `dc_offset` (its size)"
    )
    flags: tuple[Flag, ...] = Field(description="faults by bounds on single columns")
    duplicates: Duplicates | None = Field(description="none where audio has no hashes")
    leaks: tuple[Leak, ...] = Field(description="between splits of this set")
    coverage: Counts | None = Field(
        description="what became of the clips that the corpus lists; none for a set made of others"
    )
    rejects: tuple[RejectFigures, ...] = Field(description="most frequent reason first")
    ignored: tuple[RejectFigures, ...] = Field(description="files that belong to no input")
    bands: Bands | None = Field(description="none for the samples of one class")
    comparison: "Comparison | None" = None
    sample_check: SampleCheck | None = None

    def split_counts(self) -> list[tuple[str, int]]:
        """Return the samples of each split, and of none, if there are splits and such samples."""
        counts = [(split.name, split.n_samples) for split in self.splits]
        n_others = self.totals.n_samples - sum(n for _, n in counts)
        return [*counts, ("none", n_others)] if counts and n_others else counts

    def histogram(self, name: str) -> Histogram:
        """Return the histogram of one column."""
        return next(found for found in self.histograms if found.name == name)

    def flag(self, name: str) -> Flag:
        """Return one of the flags."""
        return next(found for found in self.flags if found.name == name)


class Comparison(_Record):
    """The data set beside another."""

    other: Inspection
    drifts: tuple[Drift, ...]
    class_drifts: tuple[ClassDrift, ...] = Field(description="largest difference first")
    band_effects: tuple[float, ...] | None = Field(
        description="per mel band: difference of the means over the pooled standard deviation "
        "(Cohen's d); none where the features differ"
    )
    leaks: tuple[Leak, ...] = Field(description="samples that stand in both")


Inspection.model_rebuild()
