"""Which numbers are alive: while their process lives, and not a moment longer, whoever asks and how often?"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from backgrounded_sqlite._alive import Locks

from waiting import eventually

HOLD = """
import os, sys
from pathlib import Path
from backgrounded_sqlite._alive import Locks
locks = Locks(Path(sys.argv[1]))
for number in sys.argv[2:]:
    locks.take(int(number))
print("held", flush=True)
for line in sys.stdin:
    word, _, number = line.strip().partition(" ")
    if word == "drop":
        locks.drop(int(number))
    elif word == "ask":
        print(locks.is_alive(int(number)), flush=True)
        continue
    elif word == "fork":
        pid = os.fork()
        if not pid:
            sys.stdin.close()
            os.close(locks._descriptor)
            import time
            time.sleep(60)
            os._exit(0)
        print(pid, flush=True)
        continue
    elif word == "fork-and-end":
        if not os.fork():
            os._exit(0)
        os.wait()
    print("done", flush=True)
"""


class Holder:
    """Another process, that holds the locks of these numbers."""

    def __init__(self, path: Path, *numbers: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path), *map(str, numbers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "held"

    def say(self, words: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()
        return self._answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "jobs.db").touch(0o600)
    return tmp_path / "jobs.db"


@pytest.fixture
def locks(path: Path) -> Iterator[Locks]:
    locks = Locks(path)
    yield locks
    os.close(locks._descriptor)


@pytest.fixture
def holder(path: Path) -> Iterator[Holder]:
    """Holds the lowest number, one in the middle, and the highest."""
    holder = Holder(path, 1, 7, 2**53 - 1)
    yield holder
    holder.kill()


def test_a_number_is_alive_while_its_process_lives_and_dead_when_it_is_killed(locks: Locks, holder: Holder) -> None:
    assert [locks.is_alive(number) for number in (1, 2, 6, 7, 8, 2**53 - 1)] == [True, False, False, True, False, True]
    holder.kill()
    assert not any(locks.is_alive(number) for number in (1, 7, 2**53 - 1))


def test_a_number_that_was_let_go_is_dead_and_the_others_live(locks: Locks, holder: Holder) -> None:
    holder.say("drop 7")
    assert not locks.is_alive(7)
    assert locks.is_alive(1)


def test_a_process_s_own_number_is_alive_until_it_lets_go(locks: Locks) -> None:
    locks.take(5)
    assert locks.is_alive(5)
    locks.drop(5)
    assert not locks.is_alive(5)


def test_a_process_that_asks_for_its_own_number_keeps_it(path: Path, locks: Locks, holder: Holder) -> None:
    for _ in range(3):
        assert holder.say("ask 7") == "True"
    assert locks.is_alive(7)


def test_asking_takes_a_lock_neither_from_its_holder_nor_from_who_comes_next(
    path: Path, locks: Locks, holder: Holder
) -> None:
    for _ in range(100):
        assert locks.is_alive(7)
        assert not locks.is_alive(9)
    assert holder.say("ask 7") == "True"
    second = Holder(path, 9)
    try:
        assert locks.is_alive(9)
        assert locks.is_alive(7)
    finally:
        second.kill()
    assert not locks.is_alive(9)
    assert locks.is_alive(7)


def test_many_who_ask_at_once_agree_in_the_end_and_no_living_one_is_ever_dead(
    path: Path, locks: Locks, holder: Holder
) -> None:
    """One that looks while another one looks may take a dead one for alive, which costs a moment; never the reverse."""
    ask = (
        "import sys; from pathlib import Path; from backgrounded_sqlite._alive import Locks\n"
        "locks = Locks(Path(sys.argv[1]))\n"
        "seen = [(locks.is_alive(7), locks.is_alive(8)) for _ in range(20_000)]\n"
        "print(all(a for a, _ in seen), not all(b for _, b in seen))\n"
    )
    command = [sys.executable, "-c", ask, str(path)]
    asking = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=120)[0].strip() for process in asking] == ["True True"] * 3
    assert locks.is_alive(7)
    assert not locks.is_alive(8)


def test_a_child_of_a_holder_neither_keeps_its_locks_nor_lets_them_go(locks: Locks, holder: Holder) -> None:
    """Not by ending, not by closing what it got, and not by living on."""
    assert holder.say("fork-and-end") == "done"
    assert locks.is_alive(7)
    child = int(holder.say("fork"))
    try:
        assert locks.is_alive(7)
        holder.kill()
        eventually(lambda: not locks.is_alive(7))
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_programs_that_a_holder_starts_do_not_get_the_file(locks: Locks) -> None:
    assert os.get_inheritable(locks._descriptor) is False


def test_the_file_of_locks_is_no_link(tmp_path: Path, path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    (tmp_path / "jobs.db-workers").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        Locks(path)
