"""What does the command line say of engines: does `doctor` see what makes their promises untrue, in a real server?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import backgrounded
import pytest
from backgrounded.__main__ import main

from servers import free_port, redis

each_engine = pytest.mark.parametrize("engine", ["rq", "celery", "dramatiq"])


@each_engine
@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"appendonly": "yes"}, 0, ""),
        ({}, 0, "advice: Redis writes no append-only file"),
        ({"appendonly": "yes", "maxmemory-policy": "allkeys-lru"}, 1, "GAP: Redis has maxmemory-policy allkeys-lru"),
    ],
)
def test_a_redis_that_loses_what_it_acknowledged_is_seen(
    engine: str, settings: dict[str, str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with redis(**settings) as server, backgrounded.using(engine, url=f"{server.url}/0"):
        assert main(["doctor"]) == code
    told = capsys.readouterr().out
    assert said in told
    assert bool(said) is ("Way out" in told)


@each_engine
def test_a_server_that_is_not_there_is_seen(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    with backgrounded.using(engine, url=f"redis://127.0.0.1:{free_port()}/0"):
        assert main(["doctor"]) == 1
    assert "GAP: The engine cannot be asked" in capsys.readouterr().out


def test_a_file_that_cannot_be_opened_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with backgrounded.using("sqlite", url=f"sqlite:///{tmp_path}/nowhere/jobs.db"):
        assert main(["doctor"]) == 1
    assert f"GAP: There is no directory {tmp_path}/nowhere" in capsys.readouterr().out


@pytest.mark.parametrize(
    "url",
    [
        "rq+redis://localhost/0?reslts=1",
        "huey+redis://localhost/0?reslts=1",
        "celery+redis://localhost/0?reslts=1",
        "celery+amqp://localhost//?reslts=1",
        "dramatiq+redis://localhost/0?reslts=1",
        "dramatiq+amqp://localhost/?reslts=1",
        "dramatiq+amqp://localhost/?store=redis://localhost/0%3Freslts%3D1",
        "procrastinate+postgresql://localhost/shop?reslts=1",
        "sqlite:///jobs.db?reslts=1",
    ],
)
def test_a_word_in_a_url_that_nobody_knows_is_said_in_a_line(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BACKGROUNDED_URL", url)
    backgrounded.reset()
    try:
        assert main(["kept"]) == 1
    finally:
        backgrounded.reset()
    said = capsys.readouterr().err
    assert said.startswith(f"backgrounded: {url.partition('+')[0].partition(':')[0]}: ")
    assert said.count("\n") == 1


def test_all_handlers_are_listed_with_what_they_keep() -> None:
    """Of some it depends on the place: those say it of their default one."""
    command = [sys.executable, "-m", "backgrounded", "handlers", "--json"]
    listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert listed.keys() >= {"celery", "dramatiq", "huey", "procrastinate", "rq", "sqlite", "memory"}
    assert all("queues" in features for features in listed.values())
