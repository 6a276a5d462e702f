"""Tasks and the local engine: whole outputs under their keys, workers that die, mistakes that come back as such."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from mify.curation.engines import Engine, LocalEngine, Task, execute, open_engine
from mify.errors import MifyError


def square(folder: Path, *, number: int) -> dict[str, Any]:
    (folder / "square.txt").write_text(str(number**2))
    return {"square": number**2}


def place(folder: Path, *, source: str) -> dict[str, Any]:
    (folder / "copy").write_bytes(Path(source).read_bytes())
    return {}


def half(folder: Path, *, marker: str) -> dict[str, Any]:
    (folder / "half.txt").write_text("half")
    if not Path(marker).exists():
        raise RuntimeError("stopped")
    return {}


def die_once(folder: Path, *, marker: str) -> dict[str, Any]:
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"survived": True}


def die(folder: Path) -> dict[str, Any]:
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def sleep(folder: Path) -> dict[str, Any]:
    time.sleep(60)
    return {}


def complain(folder: Path) -> dict[str, Any]:
    raise MifyError("the file x is damaged", "write it again")


def ignore(_: int) -> None:
    return None


def test_a_task_is_done_once_and_again_only_for_another_key(tmp_path: Path) -> None:
    task = Task(square, {"number": 7}, tmp_path / "t")
    first, second = execute(task), execute(task)
    assert (first.result, first.resumed, second.resumed) == ({"square": 49}, False, True)
    assert (second.result, second.digest, second.files) == (first.result, first.digest, first.files)
    other = execute(Task(square, {"number": 8}, tmp_path / "t"))
    assert (other.result, other.resumed) == ({"square": 64}, False)
    assert other.digest != first.digest
    assert (tmp_path / "t" / "square.txt").read_text() == "64"
    assert not execute(Task(square, {"number": 8}, tmp_path / "t", reads=("another",))).resumed
    # A file that is gone or cut short is made again.
    (tmp_path / "t" / "square.txt").write_text("6")
    assert not execute(Task(square, {"number": 8}, tmp_path / "t", reads=("another",))).resumed
    (tmp_path / "t" / "task.json").write_text("{")
    with pytest.raises(MifyError, match=r"task.json is not valid JSON"):
        execute(Task(square, {"number": 8}, tmp_path / "t"))


def test_where_things_lie_is_no_part_of_a_key(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("the same")
    digests = {
        execute(Task(place, {}, tmp_path / f"t{name}", places={"source": str(tmp_path / name)})).digest for name in "ab"
    }
    keys = {Task(place, {}, tmp_path / name, places={"source": name}).key for name in "ab"}
    assert len(digests) == len(keys) == 1


def test_a_task_that_fails_leaves_nothing(tmp_path: Path) -> None:
    task = Task(half, {"marker": str(tmp_path / "marker")}, tmp_path / "out" / "t")
    with pytest.raises(RuntimeError, match="stopped"):
        execute(task)
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "marker").touch()
    assert not execute(task).resumed


@pytest.mark.parametrize("workers", [1, 3])
def test_outcomes_come_in_the_order_of_the_tasks(tmp_path: Path, workers: int) -> None:
    engine: Engine = open_engine("local", workers)
    done: list[int] = []
    try:
        tasks = [Task(square, {"number": number}, tmp_path / str(number)) for number in range(8)]
        outcomes = engine.run(tasks, done.append)
        assert [outcome.result["square"] for outcome in outcomes] == [number**2 for number in range(8)]
        assert sorted(done) == list(range(8))
        with pytest.raises(MifyError, match="the file x is damaged") as caught:
            engine.run([Task(complain, {}, tmp_path / f"x{i}") for i in range(2)], ignore)
        assert caught.value.remedy == "write it again"
    finally:
        engine.close()


def test_tasks_of_a_worker_that_died_run_again(tmp_path: Path) -> None:
    engine = LocalEngine(2)
    try:
        tasks = [Task(square, {"number": number}, tmp_path / str(number)) for number in range(6)]
        tasks.insert(1, Task(die_once, {"marker": str(tmp_path / "m")}, tmp_path / "d"))
        outcomes = engine.run(tasks, ignore)
        assert outcomes[1].result == {"survived": True}
        assert [outcome.result.get("square") for outcome in outcomes] == [0, None, 1, 4, 9, 16, 25]
        assert engine.lost_workers == 1
    finally:
        engine.close()


def test_a_task_that_kills_its_workers_is_named(tmp_path: Path) -> None:
    engine = LocalEngine(2)
    try:
        tasks = [Task(square, {"number": number}, tmp_path / str(number)) for number in range(4)]
        tasks.insert(2, Task(die, {}, tmp_path / "d", label="the deadly one"))
        with pytest.raises(MifyError, match="a worker process died 3 times at: the deadly one"):
            engine.run(tasks, ignore)
        assert engine.lost_workers == 3
    finally:
        engine.close()


def test_running_tasks_are_not_waited_for_at_the_end(tmp_path: Path) -> None:
    engine = LocalEngine(2)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    tasks = [Task(square, {"number": 1}, tmp_path / "1"), *(Task(sleep, {}, tmp_path / f"s{i}") for i in range(3))]
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.run(tasks, interrupt)
    finally:
        engine.close()
    assert time.monotonic() - started < 30
    assert not (tmp_path / "s0" / "task.json").exists()


def test_another_version_of_mify_is_refused(tmp_path: Path) -> None:
    engine = LocalEngine(1)
    with pytest.raises(MifyError, match=r"a worker has mify .*, the driver 0\.0\.9"):
        engine.run([Task(square, {"number": 1}, tmp_path / "1", version="0.0.9")], ignore)
    assert not (tmp_path / "1").exists()


def test_unknown_engines_are_refused() -> None:
    with pytest.raises(MifyError, match="the engine 'spark' is not known"):
        open_engine("spark", 1)
    with pytest.raises(ValueError, match="num_workers = 0"):
        open_engine("local", 0)
