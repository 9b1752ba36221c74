"""Features that cannot be guessed: stated as the name of a preset, or in a JSON or TOML file."""

import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..shards.spec import PRESETS, FeatureSpec

FEATURES_METAVAR = "PRESET|FILE"
FEATURES_HELP = "conformer64, kaldi128, or a .json or .toml file with the fields of a feature spec."


def read_features(text: str) -> FeatureSpec:
    """Return the spec that a preset's name, or a file, stands for.

    Args:
        text: one of ``PRESETS``, or the path of a ``.json`` or ``.toml`` file with fields of
            ``FeatureSpec``; what it leaves out has the default.

    Raises:
        ValueError: neither, an unknown field, or a value that cannot be.

    >>> read_features("kaldi128").n_mels
    128
    """
    if text in PRESETS:
        return PRESETS[text]
    path = Path(text)
    if path.suffix not in (".json", ".toml") or not path.is_file():
        raise ValueError(
            f"`--features` must be one of {', '.join(PRESETS)} or a .json or .toml file with "
            f"the fields of a feature spec, found {text!r}"
        )
    try:
        return FeatureSpec.model_validate(_read(path))
    except ValidationError as error:
        found = "; ".join(_told(problem) for problem in error.errors())
        fields = ", ".join(FeatureSpec.model_fields)
        raise ValueError(f"{path} is no feature spec: {found}; its fields are {fields}") from error


def _read(path: Path) -> Any:
    content = path.read_text(encoding="utf-8")
    try:
        return json.loads(content) if path.suffix == ".json" else tomllib.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} must be {path.suffix[1:].upper()}, found: {error}") from error


def _told(problem: Any) -> str:
    place = ".".join(map(str, problem["loc"])) or "file"
    return f"`{place}`: {problem['msg']}"
