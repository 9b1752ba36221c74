"""Recipes: what a training run is, as TOML, checked before any work starts.

    melstream pretrain demo-pretrain --data shards/train --out runs/pretrain --set optim.lr=3e-4

The sections and their fields; ``recipe_file`` reads and writes them.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..model.augment import AugmentConfig
from ..model.encoder import PRESETS, EncoderConfig
from ..model.hiding import HidingConfig
from ..model.objectives import find_objective
from ..model.optim import OptimConfig
from ..model.tagger import TaggerConfig
from ..pipeline.masks import MaskConfig
from ..pipeline.shard_cache import CacheConfig
from ..pipeline.weights import WeightConfig
from ..shards.storage import DEFAULT_TIMEOUT_S
from .health import HealthConfig
from .recipe_errors import validated


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Section):
    """``[data]``: what a batch is made of."""

    batch_size: int = Field(ge=1, description="samples per step over all processes")
    crop_s: float = Field(gt=0, description="length of a random crop, in seconds")
    min_s: float = Field(
        default=0.0, ge=0, description="clips shorter than this are left out, in seconds"
    )
    n_streams: int = Field(default=64, ge=1, description="ranges of the data set read side by side")
    shuffle_bytes: int = Field(default=2**30, ge=1, description="bytes the shuffle may hold")
    tail: Literal["drop", "wrap"] = Field(
        default="drop", description="what happens to the last, short batch of an epoch"
    )
    weights: WeightConfig | None = Field(
        default=None, description="class-balanced sampling; none = each clip once per epoch"
    )
    shares: tuple[float, ...] | None = Field(
        default=None,
        description="share of each --data in every batch, in their order; none = by their clips",
    )
    cache: CacheConfig = Field(
        default=CacheConfig(), description="how data sets in an object store are read"
    )
    timeout_s: float = Field(
        default=DEFAULT_TIMEOUT_S,
        gt=0,
        description="longest wait for an object store, retries included, in seconds",
    )


class ModelConfig(_Section):
    """``[model]``: the encoder, a preset with changes."""

    preset: str = Field(default="cf-s", description=f"one of {', '.join(PRESETS)}")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="fields of the encoder that differ from the preset"
    )

    @model_validator(mode="after")
    def _leaves_what_others_set(self) -> Self:
        setters = {"n_mels": "the data set", "checkpoints_activations": "`train`"}
        for name, setter in setters.items():
            if name in self.overrides:
                raise ValueError(f"`model.overrides.{name}` must be left out: {setter} gives it")
        return self

    def encoder_config(self, n_mels: int) -> EncoderConfig:
        """Return the encoder for a data set with this many mel bands.

        Raises:
            ValueError: no such preset, or no such field.
        """
        if self.preset not in PRESETS:
            raise ValueError(
                f"`model.preset` must be one of {', '.join(PRESETS)}, found {self.preset!r}"
            )
        fields = PRESETS[self.preset].model_dump() | self.overrides | {"n_mels": n_mels}
        return validated(EncoderConfig, fields, where="model.overrides")


class ObjectiveConfig(_Section):
    """``[objective]``: what pre-training learns from."""

    name: str = Field(
        default="wav2vec2",
        description="one of melstream.model.objectives, or module:Class of your own",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="its own fields")


class TrainConfig(_Section):
    """``[train]``: how long, how often, on what."""

    steps: int = Field(ge=1, description="optimiser updates")
    seed: int = Field(default=0, ge=0, description="of weights, order, crops, masks and dropout")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="bfloat16 = autocast; softmax and loss stay float32"
    )
    compile: bool = Field(
        default=False, description="torch.compile: minutes at the start, then faster"
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        description="parts that a process cuts its share of a batch into, to need less memory; "
        "the batch stays the same",
    )
    checkpoints_activations: bool = Field(
        default=False, description="compute activations twice instead of keeping them"
    )
    average_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of a moving average of the weights kept per step; the average is what "
        "is validated and becomes the model; 0 = no average",
    )
    average_last: int = Field(
        default=0,
        ge=0,
        description="the mean of so many last checkpoints becomes the model; 0 = off",
    )
    stop_after: int = Field(
        default=0,
        ge=0,
        description="validations without a better figure after which the run ends; 0 = never; "
        "fine-tuning with held-out data only",
    )
    max_skipped_steps: int = Field(
        default=20, ge=0, description="steps skipped for NaN or inf before the run stops"
    )
    log_every: int = Field(default=10, ge=1, description="steps between log entries")
    validate_every: int = Field(
        default=0,
        ge=0,
        description="steps; 0 = at the end only; fine-tuning with held-out data only",
    )
    checkpoint_every: int = Field(default=500, ge=1, description="steps")
    keep_last: int = Field(default=2, ge=1, description="checkpoints kept, beside the best")
    wandb_project: str = Field(
        default="", description="log to this project of Weights & Biases too; empty = do not"
    )

    @model_validator(mode="after")
    def _keeps_what_it_averages(self) -> Self:
        if self.average_last > self.keep_last:
            raise ValueError(
                f"`train.keep_last` must be at least `train.average_last` ({self.average_last}), "
                f"found {self.keep_last}"
            )
        return self

    @model_validator(mode="after")
    def _validates_what_it_stops_by(self) -> Self:
        if self.stop_after and not self.validate_every:
            raise ValueError(
                f"`train.validate_every` must be above 0 with `train.stop_after` "
                f"({self.stop_after}), found 0"
            )
        return self


class Recipe(_Section):
    """What both kinds of run have."""

    data: DataConfig
    model: ModelConfig = ModelConfig()
    optim: OptimConfig
    train: TrainConfig
    health: HealthConfig = HealthConfig()

    @property
    def n_frozen_steps(self) -> int:
        """First steps in which the body rests."""
        return 0

    @model_validator(mode="after")
    def _describes_an_encoder(self) -> Self:
        self.model.encoder_config(n_mels=1)
        return self

    @model_validator(mode="after")
    def _has_room_for_the_warmup(self) -> Self:
        if self.optim.warmup_steps >= self.train.steps:
            raise ValueError(
                f"`optim.warmup_steps` must be below `train.steps` ({self.train.steps}), found "
                f"{self.optim.warmup_steps}; --set optim.warmup_steps={self.train.steps // 10}"
            )
        return self


class PretrainRecipe(Recipe):
    """All of a pre-training run."""

    mask: MaskConfig = MaskConfig()
    objective: ObjectiveConfig = ObjectiveConfig()

    @model_validator(mode="after")
    def _knows_its_objective(self) -> Self:
        config_class, _ = find_objective(self.objective.name)
        validated(config_class, self.objective.options, where="objective.options")
        return self

    @model_validator(mode="after")
    def _validates_on_nothing(self) -> Self:
        for name in ("stop_after", "validate_every"):
            if found := getattr(self.train, name):
                raise ValueError(
                    f"`train.{name}` must be 0 in pre-training, which validates on nothing, found "
                    f"{found}"
                )
        return self


class FinetuneOptimConfig(OptimConfig):
    """``[optim]`` of fine-tuning: the body's, by data2vec's recipe for AudioSet."""

    lr: float = Field(
        default=3e-5, gt=0, allow_inf_nan=False, description="peak rate of the body, per step"
    )
    eps: float = Field(default=1e-8, gt=0, description="added to the root of the second moment")
    warmup_steps: int = Field(default=8_000, ge=0, description="steps of linear rise to the peak")


class FinetuneConfig(_Section):
    """``[finetune]``: how the pre-trained body is treated."""

    head_lr: float = Field(
        default=2e-4,
        gt=0,
        allow_inf_nan=False,
        description="learning rate of the new head; optim.lr is the body's",
    )
    head_warmup_steps: int | None = Field(
        default=None, ge=0, description="warm-up of the head; none = as long as the body's"
    )
    freeze_body_steps: Annotated[int, Field(ge=0)] | Literal["all"] = Field(
        default=0,
        description='first steps that train the head only, on a body without dropout; "all" makes '
        "a linear probe",
    )
    freezes_feature_encoder: bool = Field(
        default=False, description="the feature encoder stays as it was pre-trained"
    )
    layer_drop: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="probability that a block is left out; none = as pre-trained",
    )
    dropout: float | None = Field(
        default=None, ge=0, lt=1, description="dropout of the body; none = as pre-trained"
    )


class FinetuneRecipe(Recipe):
    """All of a fine-tuning run; ``[model]`` counts only when training from scratch."""

    optim: FinetuneOptimConfig  # pyright: ignore[reportIncompatibleVariableOverride]  # frozen
    tagger: TaggerConfig = TaggerConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    augment: AugmentConfig = AugmentConfig()
    hiding: HidingConfig = HidingConfig()

    @property
    def n_frozen_steps(self) -> int:
        """First steps in which the body rests."""
        frozen = self.finetune.freeze_body_steps
        return self.train.steps if frozen == "all" else frozen

    @model_validator(mode="after")
    def _thaws_the_body(self) -> Self:
        frozen = self.finetune.freeze_body_steps
        if frozen != "all" and frozen >= self.train.steps:
            raise ValueError(
                "`finetune.freeze_body_steps` must be below `train.steps` "
                f'({self.train.steps}), or "all" for a head alone, found {frozen}'
            )
        return self

    @model_validator(mode="after")
    def _has_room_for_the_head_warmup(self) -> Self:
        if (self.finetune.head_warmup_steps or 0) >= self.train.steps:
            raise ValueError(
                f"`finetune.head_warmup_steps` must be below `train.steps` ({self.train.steps}), "
                f"found {self.finetune.head_warmup_steps}; --set finetune.head_warmup_steps="
                f"{self.train.steps // 10}"
            )
        return self
