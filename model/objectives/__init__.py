"""What a model learns from: one file per objective, and the one list of them.

An objective is a frozen config and an ``nn.Module`` made from it and the encoder's
config. Its ``forward(encoder, *, logmel, n_frames, mask, distractors, step)`` returns
scalars by name, ``loss`` among them; whatever else it returns is logged. A parameter
``mask_embedding`` of shape (latent_dim,) stays with the encoder afterwards, and what is
logged as ``accuracy`` beside ``chance``, that of a guess, tells whether a run learns. To add one,
write its file and its line in ``OBJECTIVES``: the contract test finds it there. One of your own
package is named by its place, ``my_package.my_module:MyObjective``, and names its config as
``MyObjective.config_class``.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pydantic import BaseModel
from torch import nn

from ..encoder import EncoderConfig
from .wav2vec2 import Wav2Vec2, Wav2Vec2Config

__all__ = ["OBJECTIVES", "Wav2Vec2", "Wav2Vec2Config", "build_objective", "find_objective"]

OBJECTIVES: dict[str, tuple[type[BaseModel], type[nn.Module]]] = {
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2),
}
"""Config and module of each objective, by the name that a recipe uses."""


def find_objective(name: str) -> tuple[type[BaseModel], type[nn.Module]]:
    """Return config and module of an objective.

    Args:
        name: one of ``OBJECTIVES``, or module and class of your own, ``module:Class``.

    Raises:
        ValueError: there is no such objective.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    module, _, class_name = name.partition(":")
    if not (class_name and all(part.isidentifier() for part in module.split("."))):
        raise ValueError(
            f"the objective must be one of {', '.join(OBJECTIVES)}, or module:Class of your own, "
            f"found {name!r}"
        )
    try:
        objective: Any = getattr(import_module(module), class_name, None)
    except ImportError as error:
        raise ValueError(
            f"the objective {name!r} must be in a module that is installed or on PYTHONPATH, "
            f"found: {error}"
        ) from error
    config: Any = getattr(objective, "config_class", None)
    if not (_is_a(nn.Module, objective) and _is_a(BaseModel, config)):
        raise ValueError(
            f"the objective {name!r} must be an nn.Module with a pydantic model as its "
            f"`config_class`, found {objective!r} with {config!r}"
        )
    return config, objective


def _is_a(kind: type, found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, kind)


def build_objective(
    name: str, options: Mapping[str, Any], encoder_config: EncoderConfig
) -> nn.Module:
    """Build an objective by name.

    Args:
        name: of ``find_objective``.
        options: fields of its config, as a recipe gives them; absent ones take
            their defaults. ``Any``: each config checks its own.
        encoder_config: sizes of the encoder that is trained.

    Returns:
        The objective, freshly initialised.

    Raises:
        ValueError: an unknown name or option, or a value that its config refuses.
    """
    config_class, objective_class = find_objective(name)
    unknown = set(options) - set(config_class.model_fields)
    if unknown:
        raise ValueError(
            f"objective {name!r} has the options {', '.join(config_class.model_fields)}, "
            f"found {', '.join(sorted(unknown))}"
        )
    return objective_class(config_class(**options), encoder_config)
