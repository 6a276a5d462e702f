"""The ledger of requests and the account: nothing is lost at any cut, and no ceiling is crossed."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mify.errors import MifyError
from mify.post.synth.account import Account, Budget, BudgetReachedError, Price
from mify.post.synth.ledger import Ledger

BODY = {"messages": "…"}


def fill(path: Path) -> None:
    with Ledger(path) as ledger:
        for number in range(5):
            ledger.sending(f"k{number}", "teacher", 0.5)
            answer = {"text": "é\ud800" * number, "finish": "stop", "prompt_tokens": 3, "new_tokens": 2, "tries": 1}
            ledger.answered(f"k{number}", "teacher", 0.25, BODY, answer)
        ledger.sending("k5", "teacher", 0.5)
        ledger.gave_up("k5", "HTTP 500", 3)
        ledger.sending("k6", "judge", 0.75)
        ledger.answered("k6", "judge", 0.0, BODY, {"failed": "HTTP 400", "tries": 1})


def test_cut_anywhere_it_holds_what_was_whole(tmp_path: Path) -> None:
    fill(tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    for cut in range(len(data) + 1):
        path = tmp_path / "cut"
        path.write_bytes(data[:cut])
        with Ledger(path) as ledger:
            lines = data[:cut].split(b"\n")[1:-1] if b"\n" in data[:cut] else []
            known = [f"k{n}" for n in range(7) if any(f'"key": "k{n}"'.encode() in line for line in lines)]
            assert [f"k{n}" for n in range(7) if f"k{n}" in ledger] == known
            for name in known:
                assert ("failed" in ledger.answer(name)) == (name == "k6")
            open_ones = {
                f"k{n}"
                for n in range(7)
                if any(f'"sent": "k{n}"'.encode() in line for line in lines)
                and not any(f'"{end}": "k{n}"'.encode() in line for line in lines for end in ("key", "gave_up"))
            }
            assert ledger.interrupted.keys() == open_ones
            ledger.answered("new", "teacher", 1.0, BODY, {"text": "t", "finish": "stop", "tries": 1})
        with Ledger(path) as ledger:  # what is behind the cut is whole again
            assert ledger.answer("new")["text"] == "t"


def test_an_answer_longer_than_one_read(tmp_path: Path) -> None:
    text = "".join(random.Random(1).choices('ab\n"é', k=200_000))
    with Ledger(tmp_path / "l") as ledger:
        ledger.answered("long", "teacher", 0.0, BODY, {"text": text, "finish": "stop", "tries": 1})
        ledger.answered("next", "teacher", 0.0, BODY, {"text": "n", "finish": "stop", "tries": 1})
        assert ledger.answer("long")["text"] == text
        assert ledger.answer("next")["text"] == "n"


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l"):
        code = f"from mify.post.synth.ledger import *; Ledger(Path({str(tmp_path / 'l')!r}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "another process works in" in done.stderr


@pytest.mark.parametrize("damage", [b"{}\n", b"no json\n", b'{"format":"else","version":1}\n', b"half"])
def test_what_is_no_ledger_is_refused(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "l").write_bytes(damage)
    with pytest.raises(MifyError, match="is no synth-requests"):
        Ledger(tmp_path / "l")


def test_damage_inside_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "l")
    data = (tmp_path / "l").read_bytes()
    (tmp_path / "l").write_bytes(data.replace(b'"tries": 3', b'"tr\x00es": 3'))
    with pytest.raises(MifyError, match="damaged at byte"):
        Ledger(tmp_path / "l")


def test_the_ceiling_holds_for_many_at_a_time(tmp_path: Path) -> None:
    price = Price(input=1.0, output=2.0)
    with Ledger(tmp_path / "l") as ledger:
        account = Account(Budget(max_cost=0.01), {"t": price}, ledger)
        spent: list[float] = []
        stopped: list[str] = []
        lock = threading.Lock()

        def work(seed: int) -> None:
            random_ = random.Random(seed)
            while True:
                try:
                    worst = account.set_aside("t", 400, 200, 2)
                except BudgetReachedError as reached:
                    with lock:
                        stopped.append(str(reached))
                    return
                cost = price.of(random_.randrange(1, 400), random_.randrange(1, 200))
                with lock:
                    spent.append(cost)
                    assert sum(spent) <= 0.01
                account.settle(worst, cost)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(stopped) == 8
        assert account.spent == pytest.approx(sum(spent))
        # It stops where one more could cross the line, not long before.
        assert account.spent + price.worst(400, 200, 2) > 0.01


def test_a_ceiling_of_requests_and_what_earlier_runs_sent(tmp_path: Path) -> None:
    fill(tmp_path / "l")
    with Ledger(tmp_path / "l") as ledger:
        ledger.sending("lost", "teacher", 0.5)
    with Ledger(tmp_path / "l") as ledger:
        account = Account(Budget(max_requests=9), {"teacher": Price()}, ledger)
        assert (account.requests, account.spent, account.possibly_billed) == (8, 1.25, 0.5)
        account.set_aside("teacher", 1, 1, 1)
        with pytest.raises(BudgetReachedError, match="9 requests"):
            account.set_aside("teacher", 1, 1, 1)
