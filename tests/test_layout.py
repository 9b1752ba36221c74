"""The repository's folders, its packages, its import rules and what is installed agree."""

import ast
import importlib
import importlib.util
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "shards": {"shards"},
    "pipeline": {"pipeline", "shards"},
    "model": {"model"},
    "tools": {"tools", "pipeline", "model", "shards"},
}
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def files_of(layer: str) -> list[Path]:
    """The files of a folder, without caches and hidden files."""
    paths = (path.relative_to(ROOT) for path in sorted((ROOT / layer).rglob("*")))
    return [
        path
        for path in paths
        if (ROOT / path).is_file()
        and not any(part.startswith((".", "__pycache__")) for part in path.parts)
    ]


FILES = [path for layer in MAY_IMPORT for path in files_of(layer)]
SOURCES = [path for path in FILES if path.suffix == ".py"]


def test_every_package_is_listed() -> None:
    found = {".".join(("melstream", *p.parent.parts)) for p in SOURCES if p.name == "__init__.py"}
    assert found == set(SETUPTOOLS["packages"])


def test_every_data_file_is_package_data() -> None:
    packaged = set(SOURCES)
    for package in SETUPTOOLS["packages"]:
        folder = ROOT.joinpath(*package.split(".")[1:])
        globs = SETUPTOOLS["package-data"]
        for glob in [*globs["*"], *globs.get(package, [])]:
            packaged.update(path.relative_to(ROOT) for path in folder.glob(glob))
    assert [str(path) for path in FILES if path not in packaged] == []


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_own_code_is_imported_relatively_and_only_from_allowed_folders(path: Path) -> None:
    parts = path.with_suffix("").parts
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            names = []
        for name in names:
            top = name.split(".")[0]
            assert top not in (*MAY_IMPORT, "melstream"), (
                f"line {node.lineno}: write a relative import"
            )
        if isinstance(node, ast.ImportFrom) and node.level == len(parts):
            imported = [node.module] if node.module else [alias.name for alias in node.names]
            layers = {name.split(".")[0] for name in imported}
            assert layers <= MAY_IMPORT[parts[0]], (
                f"line {node.lineno}: {parts[0]}/ may not import {layers - MAY_IMPORT[parts[0]]}"
            )


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_a_folder_has_one_name_only(layer: str) -> None:
    assert importlib.util.find_spec(layer) is None, (
        f"`import {layer}` finds a second copy in the current directory; run `make test`, "
        "`pytest` or `python -Im pytest`"
    )


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_what_is_installed_is_whole(layer: str) -> None:
    """Every source and data file of a folder is in the installed package too."""
    module = importlib.import_module(f"melstream.{layer}")
    assert module.__file__
    installed = Path(module.__file__).resolve().parent
    checkout, environment = (ROOT / layer).resolve(), Path(sys.prefix).resolve()
    assert installed == checkout or installed.is_relative_to(environment), (
        f"melstream is imported from {installed}, which is neither this checkout nor this "
        "environment; run `make clean`"
    )
    files = [path.relative_to(layer) for path in FILES if path.parts[0] == layer]
    assert Path("py.typed") in files
    assert [str(file) for file in files if not (installed / file).is_file()] == []
