"""What does the command line say and do, before any engine comes into it?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import backgrounded
import pytest
from backgrounded import Backgrounded
from backgrounded.__main__ import main
from backgrounded.handler import Finding
from backgrounded.handlers.memory import MemoryHandler


class Parcel(Backgrounded):
    def send(self, to: str) -> None:
        raise AssertionError("it is not to be run here")


@pytest.fixture
def handler() -> Iterator[MemoryHandler]:
    """A handler with two jobs set aside, whose methods no worker knows."""
    with backgrounded.using(MemoryHandler()) as handler:
        assert isinstance(handler, MemoryHandler)
        for to in ("Ada", "Bob"):
            Parcel().backgrounded.send(to)
        Parcel.send, method = None, Parcel.send  # type: ignore[assignment,method-assign]  # a deploy has removed it
        try:
            for _ in range(2):
                with pytest.raises(backgrounded.PerformError):
                    handler.run()
        finally:
            Parcel.send = method  # type: ignore[method-assign]
        assert len(handler.kept()) == 2
        yield handler


def test_what_was_kept_is_listed_with_its_reason_and_without_its_arguments(
    handler: MemoryHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kept"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [job.id for job in handler.kept()]
    assert all("Parcel.send" in line for line in lines)
    assert not any("Ada" in line or "Bob" in line for line in lines)


def test_what_was_kept_is_there_for_machines_too(handler: MemoryHandler, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kept", "--json"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [job["id"] for job in shown] == [job.id for job in handler.kept()]
    assert {frozenset(job) for job in shown} == {frozenset({"id", "name", "code", "reason"})}


def test_a_kept_job_is_replayed_by_its_id_and_the_others_stay(
    handler: MemoryHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = handler.kept()
    assert main(["replay", first.id]) == 0
    assert [job.id for job in handler.kept()] == [second.id]
    assert [call.id for call in handler.calls] == [first.id]


def test_all_kept_jobs_are_forgotten_when_asked_for(handler: MemoryHandler) -> None:
    assert main(["forget", "--all"]) == 0
    assert not handler.kept()
    assert not handler.calls


@pytest.mark.parametrize(("command", "said"), [("replay", "runs again"), ("forget", "is dropped")])
def test_what_somebody_else_has_replayed_meanwhile_does_not_stop_the_others(
    handler: Any, capsys: pytest.CaptureFixture[str], command: str, said: str
) -> None:
    """The ids are asked of the handler, by a method of its own where it has one."""
    first, second = [job.id for job in handler.kept()]
    handler.kept_ids = lambda: iter(["somebody-else-s", second])
    assert main([command, "--all"]) == 0
    assert capsys.readouterr().out.splitlines() == ["somebody-else-s is not kept any more", f"{second} {said}"]
    assert [job.id for job in handler.kept()] == [first]


@pytest.mark.parametrize("command", ["replay", "forget"])
@pytest.mark.parametrize("arguments", [[], ["--all", "an-id"]], ids=["nothing", "both"])
def test_jobs_are_named_by_id_or_all_are_meant_but_nothing_is_guessed(
    handler: MemoryHandler, capsys: pytest.CaptureFixture[str], command: str, arguments: list[str]
) -> None:
    assert main([command, *arguments]) == 1
    assert "or say --all" in capsys.readouterr().err
    assert len(handler.kept()) == 2


def test_an_id_that_is_not_kept_is_said_and_is_no_success(
    handler: MemoryHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", "nobody"]) == 1
    assert "'nobody'" in capsys.readouterr().err


def away(error: type[BaseException]) -> MemoryHandler:
    """A handler whose engine cannot be asked."""

    def nobody(*_: Any) -> Any:
        raise error("nobody is there")

    handler: Any = MemoryHandler()
    handler.kept = handler.replay = handler.forget = nobody
    return handler  # type: ignore[no-any-return]


@pytest.mark.parametrize("command", [["kept"], ["replay", "--all"], ["replay", "id"], ["forget", "id"]])
def test_an_engine_that_cannot_be_asked_is_one_line(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    with backgrounded.using(away(ConnectionRefusedError)):
        assert main(command) == 1
    said = "backgrounded: The engine cannot be asked: ConnectionRefusedError: nobody is there\n"
    assert capsys.readouterr().err == said


def test_who_reads_no_further_sees_no_complaint() -> None:
    script = "import sys; from backgrounded.__main__ import main; sys.exit(main(['handlers', '--json']))"
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run([sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (run.returncode, run.stderr) == (1, b"")


def test_ctrl_c_ends_a_command_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with backgrounded.using(away(KeyboardInterrupt)):
        assert main(["kept"]) == 130
    assert capsys.readouterr().err == ""


def test_a_queue_without_a_name_is_no_queue(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker", ""]) == 1
    assert "is a variable of the shell not set?" in capsys.readouterr().err


def test_a_handler_without_workers_says_how_to_name_one_that_has(
    handler: MemoryHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["worker", "custom"]) == 1
    said = capsys.readouterr().err
    assert "has no worker" in said
    assert "--url sqlite:///jobs.db" in said


def test_an_application_that_cannot_be_imported_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("BACKGROUNDED_APP", raising=False)
        patch.setenv("BACKGROUNDED_APP", "nobody.has.this")
        assert main(["worker", "--app", "nobody.has.this"]) == 1
    assert "nobody.has.this could not be imported" in capsys.readouterr().err


class Examined(MemoryHandler):
    """A handler that looks at its engine, and finds what it is told to find."""

    findings: tuple[Finding, ...] = ()

    def examine(self) -> Iterator[Finding]:
        yield from self.findings


class Unreachable(MemoryHandler):
    def examine(self) -> Iterator[Finding]:
        raise ConnectionRefusedError("nobody is there")


ADVICE = Finding("It is slow.", "be patient")
GAP = Finding("It forgets.", "remind it", gap=True)


@pytest.mark.parametrize(("findings", "code"), [((), 0), ((ADVICE,), 0), ((ADVICE, GAP), 1)])
def test_the_doctor_says_what_is_promised_and_what_makes_it_untrue(
    capsys: pytest.CaptureFixture[str], findings: tuple[Finding, ...], code: int
) -> None:
    handler = Examined()
    handler.findings = findings
    with backgrounded.using(handler):
        assert main(["doctor"]) == code
        told = capsys.readouterr().out
        assert main(["doctor", "--json"]) == code
        found = json.loads(capsys.readouterr().out)
    assert "delivery at-most-once" in told
    assert ("advice: It is slow.\n  Way out: be patient" in told) is bool(findings)
    assert ("GAP: It forgets.\n  Way out: remind it" in told) is bool(code)
    assert found["guarantees"]["delivery"] == "at-most-once"
    assert [finding["what"] for finding in found["findings"]] == [finding.what for finding in findings]


def test_an_engine_that_cannot_be_asked_is_a_gap(capsys: pytest.CaptureFixture[str]) -> None:
    with backgrounded.using(Unreachable()):
        assert main(["doctor"]) == 1
    assert "GAP: The engine cannot be asked: ConnectionRefusedError: nobody is there" in capsys.readouterr().out


def test_a_queue_that_is_not_there_yet_is_no_gap(capsys: pytest.CaptureFixture[str]) -> None:
    def nothing() -> Any:
        raise backgrounded.ConfigurationError("There is no queue yet.")

    handler: Any = MemoryHandler()
    handler.kept = nothing
    with backgrounded.using(handler):
        assert main(["doctor"]) == 0
    assert "advice: There is no queue yet." in capsys.readouterr().out


def test_the_doctor_counts_what_was_set_aside(handler: MemoryHandler, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "advice: Jobs that were set aside: 2." in capsys.readouterr().out
