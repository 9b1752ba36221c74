"""Every example in a docstring gives what it says, and every public name is there."""

import doctest
import importlib
import pkgutil
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from melstream.shards.dataset import Dataset

ROOT = Path(__file__).parents[1]
LAYERS = ("shards", "pipeline", "model", "tools")
MODULES = [
    name
    for layer in LAYERS
    for name in (
        f"melstream.{layer}",
        *(
            module.name
            for module in pkgutil.walk_packages([str(ROOT / layer)], f"melstream.{layer}.")
            if not module.name.endswith("__main__")  # importing it runs the program
        ),
    )
]


@pytest.mark.parametrize("name", MODULES)
def test_doctest(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_there(name: str) -> None:
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", [])
    assert sorted(set(listed)) == sorted(listed)
    assert [public for public in listed if not hasattr(module, public)] == []


def test_no_module_was_imported_under_two_names() -> None:
    """A second copy has classes and Numba caches of its own."""
    for name in MODULES:
        importlib.import_module(name)
    assert [name for name in sys.modules if name.split(".")[0] in LAYERS] == []


def test_the_readmes_python_runs(built: Callable[[str], Dataset]) -> None:
    dataset = built("train")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    code = "\n".join(blocks).replace('"shards/train"', repr(str(dataset.folder)))
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["state"]["position"] == 3 * 16  # type: ignore[index]
    assert names["figures"]["loss"].isfinite()  # type: ignore[index]
