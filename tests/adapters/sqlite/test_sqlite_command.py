"""Can somebody who knows nothing of this package start a worker, see the demo, and look after what was kept?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import backgrounded
import pytest
from backgrounded import State
from sqlite_contract import listed

from processes import running

pytestmark = pytest.mark.worker

SHOP = """
import os

import backgrounded
from backgrounded import Backgrounded

backgrounded.configure("sqlite", url="sqlite:///queue.db", processes=1)


class Till(Backgrounded):
    def ring(self, amount):
        return [amount, os.getpid()]
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with an application in it, which says itself where its queue is."""
    (tmp_path / "till.py").write_text(SHOP)
    return tmp_path


def command(*arguments: str) -> list[str]:
    """The installed script, which has no current directory on its path by itself."""
    return [str(Path(sys.executable).with_name("backgrounded")), *arguments]


def says(folder: Path, *arguments: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BACKGROUNDED_")}
    done = subprocess.run(command(*arguments), cwd=folder, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def enqueue(folder: Path, amount: int) -> str:
    code = f"import till; print(till.Till().backgrounded(queue='front').ring({amount}).id)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_worker_command_finds_the_application_in_the_current_directory_and_its_configuration(shop: Path) -> None:
    queue = shop / "queue.db"
    with (
        backgrounded.using("sqlite", url=f"sqlite:///{queue}"),
        running(
            ["env", "-C", str(shop), *command("worker", "--app", "till", "front")],
            environment={},
            output=shop / "worker.log",
            is_ready=lambda: queue.exists() and len(listed(queue, ["front"])) == 1,
        ) as worker,
    ):
        amount, pid = backgrounded.job(enqueue(shop, 7)).result(30)
        assert amount == 7
        assert pid not in (os.getpid(), worker.pid)
    assert worker.returncode == 0


def test_the_worker_command_can_be_shown_without_being_run(shop: Path) -> None:
    shown = says(shop, "worker", "--app", "till", "--print", "front", "back")
    assert shown.rstrip().endswith(f"--url sqlite:///{shop}/queue.db --processes 1 front back")
    assert shown.startswith("env BACKGROUNDED_APP=till ")
    assert not (shop / "queue.db").exists()


def test_a_job_that_was_kept_is_seen_and_replayed_from_a_shell(shop: Path) -> None:
    url = f"sqlite:///{shop}/queue.db"
    with backgrounded.using("sqlite", url=url):
        job = backgrounded.job(enqueue(shop, 7))
        queue = shop / "queue.db"
        unknowing = command("worker", "--url", url, "front")
        with running(
            unknowing,
            environment={},
            output=shop / "unknowing.log",
            is_ready=lambda: bool(listed(queue, ["front"])),
        ):
            assert job.wait(30) is State.KEPT
        told = says(shop, "kept", "--url", url)
        assert told.startswith(f"{job.id}  till.Till.ring  target-not-found: ")
        assert "BACKGROUNDED_APP=till" in told
        assert says(shop, "replay", "--url", url, job.id) == f"{job.id} runs again\n"
        assert job.state == "queued"
        assert says(shop, "kept", "--url", url) == ""


@pytest.mark.parametrize("words", ["kept", "replay --all", "forget 4711"])
def test_the_name_of_a_queue_that_is_not_there_is_an_error_and_no_new_queue(tmp_path: Path, words: str) -> None:
    done = subprocess.run(
        command(*words.split(), "--url", "sqlite:///typo.db"), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert f"there is no queue at {tmp_path}/typo.db" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_demo_shows_two_processes_and_the_result(tmp_path: Path) -> None:
    shown = says(tmp_path, "demo")
    here, there = re.search(r"Called here, in pid (\d+)", shown), re.search(r"Ada did 3 things in pid (\d+)", shown)
    assert here is not None
    assert there is not None
    assert here[1] != there[1]
    assert "the job has succeeded" in shown
    assert not list(tmp_path.iterdir())
