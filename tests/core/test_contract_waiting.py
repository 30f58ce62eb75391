"""How long does the contract wait? For the next job, not for all of them: a slow engine keeps its promises too."""

from __future__ import annotations

from pathlib import Path

import pytest
from backgrounded.testing import frame
from backgrounded.testing.probe import record


class SlowEngine:
    """Stands for the clock that the contract looks at: every nine of its seconds, one of `jobs` runs."""

    def __init__(self, path: Path, jobs: int) -> None:
        self.path = str(path)
        self.jobs = jobs
        self.ran = 0
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.ran < min(self.jobs, self.now // 9):
            self.ran += 1
            record(self.path, "note", self.ran)


class Patient(frame.Frame):
    deadline = 10.0


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlowEngine:
    engine = SlowEngine(tmp_path / "oracle", jobs=4)
    monkeypatch.setattr(frame, "time", engine)
    monkeypatch.setattr(frame, "PAUSE", 1.0)
    return engine


def test_of_many_jobs_each_has_the_deadline(engine: SlowEngine) -> None:
    oracle = frame.Oracle(Path(engine.path), Patient())
    assert len(oracle.wait("note", 4)) == 4
    assert engine.now == 36


def test_the_job_that_does_not_come_fails_after_the_deadline(engine: SlowEngine) -> None:
    oracle = frame.Oracle(Path(engine.path), Patient())
    with pytest.raises(pytest.fail.Exception, match="waited 10 s for 5 x 'note'"):
        oracle.wait("note", 5)
    assert 46 <= engine.now <= 48
