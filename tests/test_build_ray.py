"""A build on a Ray cluster of several nodes, one of which dies on the way."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from melstream.shards.spec import PRESETS
from melstream.shards.storage import open_storage
from melstream.tools.build import build
from melstream.tools.build_job import ShardJob
from melstream.tools.build_plan import PlanSettings, make_plan
from melstream.tools.build_ray import run_on_ray
from melstream.tools.build_workers import run_here
from melstream.tools.corpora import folder

ray = pytest.importorskip("ray", reason="needs pip install 'melstream[ray]'")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning"),
]


def silent(done: int, note: str) -> None: ...


def content(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes with one core each, beside a head that builds nothing."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    try:
        yield cluster, nodes
    finally:
        ray.shutdown()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cluster.shutdown()


def test_a_cluster_that_loses_a_node_gives_the_bytes_of_one_process(
    cluster: Any, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = PlanSettings(corpus="folder", features=PRESETS["conformer64"], max_shard_samples=10)
    plan = make_plan(folder.scan(recordings / "train"), settings)
    build(plan, open_storage(tmp_path / "one" / "train"), run_here, silent)
    ray_cluster, nodes = cluster

    def run(jobs: Sequence[ShardJob]) -> Iterator[int]:
        is_whole = True
        for n_done in run_on_ray(jobs):
            if n_done and is_whole:
                ray_cluster.remove_node(nodes[0], allow_graceful=False)
                is_whole = False
            yield n_done
        assert not is_whole

    build(plan, open_storage("ray/train"), run, silent)
    assert content(tmp_path / "ray") == content(tmp_path / "one")
