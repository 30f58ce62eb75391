"""What happens when something is wrong, and what does a handler say about itself?"""

from __future__ import annotations

import json
import math
import re
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import backgrounded
from backgrounded import (
    BatchError,
    EnqueueError,
    NoResult,
    PerformError,
    State,
)
from backgrounded.handler import PROTOCOL, Feature, Guarantees

from ..frame import Frame, Oracle, Send, needs
from ..probe import ProbeError, Record, given


class Troubles(Frame):
    """What goes wrong is said, where it can be acted upon, and nothing is lost over it."""

    @needs(run=False)
    def test_a_dead_engine_is_an_enqueue_error_with_its_cause_within_seconds(self, send: Send, oracle: Oracle) -> None:
        """K73 K74 K75"""
        dead = self.dead_handler()
        if dead is None:
            pytest.skip("this handler has no engine that can be down (no `dead_handler`)")
        with backgrounded.using(dead):
            started = time.monotonic()
            with pytest.raises(EnqueueError) as error:
                send().note("dead")
            assert time.monotonic() - started < self.lateness
            assert error.value.__cause__ is not None
            assert error.value.uncertain is False
            with pytest.raises(BatchError) as batch, backgrounded.batch() as jobs:  # noqa: PT012  # raises at its exit
                send().note("dead")
                send().note("dead")
            assert batch.value.unsent == tuple(job.id for job in jobs)
            assert (batch.value.sent, batch.value.unknown) == ((), ())
            assert [job.state for job in jobs] == [State.UNSENT] * 2
        send().note("alive")
        oracle.wait("note")
        assert oracle.given("note") == [given("alive")]

    def test_a_hostile_wire_runs_nothing_and_the_worker_goes_on(self, handler: Any, send: Send, oracle: Oracle) -> None:
        """K58 K39"""
        for changes in self._hostile(oracle).values():
            call = self.doctored(lambda: send().note("doctored"), **changes)
            if self.immediate:
                with pytest.raises(PerformError):
                    handler.enqueue(call)
            else:
                handler.enqueue(call)
        self.settle(send, oracle)
        send().note("good")
        oracle.wait("note")
        assert oracle.given("note") == [given("good")]
        assert {event.what for event in oracle.events()} == {"note", "settled"}

    @needs(Feature.KEPT, Feature.STATE)
    def test_what_cannot_be_performed_is_kept_with_its_payload_and_the_reason(
        self, handler: Any, send: Send, oracle: Oracle
    ) -> None:
        """P16; kept jobs can be forgotten"""
        sent = {}
        for what, changes in self._hostile(oracle).items():
            call = self.doctored(lambda: send().note("doctored"), **changes)
            handler.enqueue(call)
            sent[call.id] = what, call.tree
        for job_id, (what, _) in sent.items():
            self.ends(backgrounded.job(job_id), State.KEPT, what)
        kept = {item.id: item for item in handler.kept()}
        for job_id, (what, tree) in sent.items():
            assert kept[job_id].reason, what
            assert re.fullmatch("[a-z]+(-[a-z]+)*", kept[job_id].code), what
            assert _as_tree(kept[job_id].wire) == tree, what
            with pytest.raises(NoResult):
                backgrounded.job(job_id).result(0)
        for job_id in sent:
            handler.forget(job_id)
        assert not {item.id for item in handler.kept()} & sent.keys()

    @needs(Feature.KEPT)
    def test_a_kept_job_runs_when_it_is_replayed(
        self, handler: Any, send: Send, oracle: Oracle, tmp_path: Path
    ) -> None:
        """K31 K184"""
        row = tmp_path / "row"
        row.touch()
        found = Record(oracle.path, str(row))
        row.unlink()
        limited = Feature.TIMEOUT in handler.features
        job = send.to(found, retry=self._retry(2), handler="second", timeout=60 if limited else None).find(7)
        oracle.wait("gone")
        self.ends(job, State.KEPT)
        self.settle(send, oracle)
        assert len(oracle.events("gone")) == 1, "what cannot be performed must not be tried again by itself"
        assert job.id in [item.id for item in handler.kept()]
        row.touch()
        handler.replay(job.id)
        (replayed,) = oracle.wait("found")
        assert replayed.given == given(7)
        assert replayed.job is not None
        assert (replayed.job["handler"], replayed.job["attempt"]) == ("second", 1), "the call as it was, anew"
        assert not limited or replayed.job["deadline"] is not None
        self.ends(job, State.SUCCEEDED)
        assert job.id not in [item.id for item in handler.kept()]
        if Feature.RESULTS in handler.features:
            assert job.result(self.deadline) == 7

    def test_no_argument_shows_in_what_workers_write(self, handler: Any, send: Send, oracle: Oracle) -> None:
        """K159 K160 P18"""
        secret = f"canary-{uuid.uuid4().hex}"
        jobs = [
            send().note(secret),
            self.fails(lambda: send().fail_silently_with(secret), ProbeError),
            self.fails(lambda: send(retry=self._retry(2)).fail_silently_with(secret), ProbeError),
        ]
        call = self.doctored(lambda: send().note(secret), method="nope")
        if not self.immediate:
            handler.enqueue(call)
        oracle.wait("failed silently", 4 if self._retry(2) else 2)
        self.settle(send, oracle)
        output = self.worker_output()
        if output is None:
            pytest.skip("what the workers write cannot be read (no `worker_output`)")
        assert secret not in output
        for job in jobs:
            assert secret not in repr(job)
            if job is not None and Feature.RESULTS in handler.features:
                failure = job.exception(self.deadline)
                assert secret not in f"{failure} {failure and failure.traceback}"

    def _retry(self, retries: int) -> int | None:
        return retries if Feature.RETRY in self._handler.features else None

    def _hostile(self, oracle: Oracle) -> dict[str, Mapping[str, Any]]:
        """What a stranger could write, in place of parts of a good wire."""
        stranger = "backgrounded.testing.probe:Stranger"
        return {
            "a class of the standard library": {"target": {"class": "os:system"}, "method": "system"},
            "a module": {"target": {"module": "os"}, "method": "abort", "args": []},
            "a module that is not loaded": {"target": {"module": "antigravity"}},
            "a class that has not opted in": {"target": {"built": [stranger, [], {}]}, "method": "run"},
            "a function that has not opted in": {
                "target": {"module": "backgrounded.testing.probe"},
                "method": "unmarked",
                "args": [oracle.path],
            },
            "a private method": {"method": "_private", "args": []},
            "a method that does not exist": {"method": "nope"},
            "arguments that do not fit": {"method": "give", "args": []},
            "a value of an unknown kind": {"args": [{"$pickle": "Y29z"}]},
            "a newer version": {"v": 99},
            "no target": {"target": None},
        }


def _as_tree(wire: Any) -> Any:
    return json.loads(wire) if isinstance(wire, (bytes, bytearray, str)) else wire


class Declarations(Frame):
    """What a handler says of itself is well formed."""

    @needs(run=False)
    def test_the_handler_declares_what_it_keeps_and_what_that_needs(self, handler: Any) -> None:
        """K172 K176"""
        assert type(handler).protocol == PROTOCOL
        assert isinstance(handler.features, frozenset)
        assert all(isinstance(feature, Feature) for feature in handler.features)
        for feature, need in getattr(handler, "needs", {}).items():
            assert feature in handler.features, f"needs names {feature}, which is not declared"
            assert isinstance(need, str)
            assert need.strip()
        if Feature.QUEUES in handler.features:
            assert isinstance(handler.default_queue, str)
            assert handler.default_queue
        if Feature.PRIORITY in handler.features and self.runs and not self.immediate:
            assert handler.priority_levels >= 2

    @needs(run=False)
    def test_the_handler_declares_its_guarantees(self, handler: Any) -> None:
        """P1 to P10: what a handler does not claim, nobody has to prove"""
        found = handler.guarantees
        assert isinstance(found, Guarantees)
        assert found.delivery in ("at-least-once", "at-most-once", "none")
        assert found.recovery_s is None or math.isfinite(found.recovery_s)
        assert found.delivery != "none" or found.recovery_s is None
        assert all(note.strip() for note in found.notes)

    @needs(Feature.WORKER, run=False)
    def test_the_worker_s_command_names_its_queues(self, handler: Any, queue: str, other_queue: str) -> None:
        """A worker is started with it, and not with what we think it does"""
        command = handler.worker_command([queue, other_queue])
        assert all(isinstance(word, str) for word in command)
        assert queue in " ".join(command)
        assert other_queue in " ".join(command)
