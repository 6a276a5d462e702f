"""The Ray engine: the bytes of the local one from two nodes on loopback, through killed workers and a killed node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sharded_corpus import OPEN, mixed

from mify.curation.config import config_to_toml
from mify.curation.documents import Document, write_documents
from mify.curation.engines import LocalEngine, Task
from mify.curation.pipeline import curate
from mify.curation.sharded import reading
from mify.curation.sharded.run import ShardOptions
from mify.errors import MifyError

pytestmark = pytest.mark.slow
SHARDS = ShardOptions(partitions=3, entries_per_task=2000)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two Ray nodes of one processor each on this machine."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # A dead node is noticed after seconds, not minutes; task modules are those of these tests.
        patch.setenv("RAY_health_check_failure_threshold", "10")
        patch.setenv("RAY_health_check_period_ms", "1000")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        from ray.cluster_utils import Cluster

        memory = 80 << 20
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "object_store_memory": memory, "include_dashboard": False},
        )
        cluster.add_node(num_cpus=1, object_store_memory=memory)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def engine(cluster: Any) -> Any:
    from mify.curation.engines.ray_cluster import RayEngine

    return RayEngine()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def where(folder: Path) -> dict[str, Any]:
    import ray

    (folder / "node").write_text(ray.get_runtime_context().get_node_id())
    return {"node": ray.get_runtime_context().get_node_id()}


def die_once(folder: Path, *, marker: str) -> dict[str, Any]:
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"survived": True}


def die(folder: Path) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def complain(folder: Path) -> dict[str, Any]:
    raise MifyError("the file x is damaged", "write it again")


def ignore(_: int) -> None:
    return None


def test_both_nodes_work(engine: Any, tmp_path: Path) -> None:
    tasks = [Task(where, {}, tmp_path / str(i)) for i in range(12)]
    nodes = {outcome.result["node"] for outcome in engine.run(tasks, ignore)}
    assert len(nodes) == 2


def test_the_bytes_are_those_of_the_local_engine(engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents, held_out = mixed()
    curate(documents, tmp_path / "local", OPEN, held_out=held_out, engine=LocalEngine(1), shards=ShardOptions(1))
    monkeypatch.setattr(reading, "_SMALLEST", 5000)
    curate(documents, tmp_path / "ray", OPEN, held_out=held_out, engine=engine, shards=SHARDS)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_a_task_whose_worker_is_killed_runs_again(engine: Any, tmp_path: Path) -> None:
    tasks = [Task(die_once, {"marker": str(tmp_path / f"m{i}")}, tmp_path / f"t{i}") for i in range(2)]
    assert [outcome.result for outcome in engine.run(tasks, ignore)] == [{"survived": True}] * 2


def test_a_task_that_kills_its_workers_is_named(engine: Any, tmp_path: Path) -> None:
    with pytest.raises(MifyError, match="a worker process died 4 times at: the deadly one"):
        engine.run([Task(die, {}, tmp_path / "t", label="the deadly one")], ignore)


def test_a_mistake_of_the_user_comes_back_as_one(engine: Any, tmp_path: Path) -> None:
    with pytest.raises(MifyError, match="the file x is damaged") as caught:
        engine.run([Task(complain, {}, tmp_path / "t")], ignore)
    assert caught.value.remedy == "write it again"


def test_a_node_that_dies_in_the_middle_costs_nothing_but_time(
    cluster: Any, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, held_out = mixed()
    curate(documents, tmp_path / "local", OPEN, held_out=held_out)
    monkeypatch.setattr(reading, "_SMALLEST", 5000)
    node = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    killed = []

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "filter" and not killed:
            killed.append(node)
            cluster.remove_node(node, allow_graceful=False)

    curate(documents, tmp_path / "ray", OPEN, kill, held_out=held_out, engine=engine, shards=SHARDS)
    assert killed
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_the_command_on_a_cluster_killed_and_resumed_on_another_engine(cluster: Any, tmp_path: Path) -> None:
    documents, _ = mixed()
    write_documents(
        tmp_path / "in.parquet", {item.id: item for item in documents if isinstance(item, Document)}.values()
    )
    (tmp_path / "rules.toml").write_text(config_to_toml(OPEN))
    command = [sys.executable, "-c", "from mify.cli import main; main()", "curate", str(tmp_path / "in.parquet")]
    command += ["--config", str(tmp_path / "rules.toml"), "--partitions", "3", "--out"]
    subprocess.run([*command, str(tmp_path / "local"), "--workers", "1"], check=True, stdout=subprocess.DEVNULL)
    on_ray = [*command, str(tmp_path / "ray"), "--engine", "ray", "--address", cluster.address]
    process = subprocess.Popen([*on_ray], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / ".ray.work" / "gather").glob("*/task.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    resumed = [*command, str(tmp_path / "ray"), "--workers", "1", "--resume"]
    again = subprocess.run(resumed, check=True, capture_output=True, text=True)
    assert " tasks were done before" in again.stdout
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    refused = subprocess.run([*on_ray[:-1], "127.0.0.1:1"], check=False, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "there is no Ray cluster at 127.0.0.1:1" in refused.stdout + refused.stderr
