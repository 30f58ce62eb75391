"""Whoever can write to Redis: what do they gain, over a worker and over a process that asks for a state?"""

from __future__ import annotations

import functools
import json
import os
import pickle
import time
import uuid
import zlib
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from backgrounded import NoResult, Retry
from rq import Queue
from rq.job import Job as RQJob
from rqshop.jobs import Item

from waiting import eventually

pytestmark = pytest.mark.worker


class Gadget:
    """Unpickled, it writes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def canary(tmp_path) -> Path:
    return tmp_path / "canary"


def wire(tag: str = "x", **more: Any) -> dict[str, Any]:
    target = {"built": ["rqshop.jobs:Item", [tag], {}]}
    return {"v": 1, "id": uuid.uuid4().hex, "target": target, "method": "echo", "at": time.time(), **more}


def plain(function: Any, args: Any = (), kwargs: Any = None, instance: Any = None) -> bytes:
    return json.dumps([function, instance, args, kwargs or {}]).encode()


def write(redis, packed: bytes, queue: str = "safe", **fields: Any) -> str:
    """A job as an attacker writes it."""
    id = uuid.uuid4().hex
    start = {
        "created_at": "2026-01-01T00:00:00.000000Z",
        "origin": queue,
        "status": "queued",
        "timeout": -1,
        "description": "x",
    }
    redis.hset(f"rq:job:{id}", mapping={**start, "data": zlib.compress(packed), **fields})
    redis.rpush(f"rq:queue:{queue}", id)
    return id


@functools.cache
def bomb() -> bytes:
    """A few hundred bytes that unpack to 256 MiB, packed twice."""
    return zlib.compress(zlib.compress(b"[" * 2**28, 1))


def hostile_data(canary: Path) -> dict[str, bytes]:
    touch = f"touch {canary}"
    gadget = Gadget(canary)
    return {
        "os.system": plain("os.system", [touch]),
        "os.system, pickled": pickle.dumps(("os.system", None, (touch,), {})),
        "gadget": pickle.dumps(gadget),
        "gadget, protocol 0": pickle.dumps(gadget, protocol=0),
        "gadget as instance": pickle.dumps(("system", gadget, (wire(),), {})),
        "gadget as argument": pickle.dumps(("x", None, (gadget,), {})),
        "gadget as keyword": pickle.dumps(("x", None, (wire(),), {"handler": gadget})),
        "instance": plain("system", [touch], instance="os"),
        "a name that is no text": plain({"a": 1}, [wire()]),
        "a name with line ends": plain("a\nb\x1b[31m", [touch]),
        "not JSON": b"[nonsense",
        "empty": b"",
        "nothing": b"null",
        "no arguments": plain("x", []),
        "two arguments": plain("x", [wire(), wire()]),
        "keywords of others": plain("x", [], {"wire": wire(), "attempt": 3}),
        "wire that is a list": plain("x", [[1, 2]]),
        "wire of a module": plain("x", [wire(target={"module": "os"}, method="system", args=[touch])]),
        "wire of a private method": plain("x", [wire(method="_start")]),
        "wire of a foreign class": plain("x", [wire(target={"class": "subprocess:Popen"}, method="wait")]),
        "deep": b"[" * 100_000 + b"]" * 100_000,
        "a shared list, doubled 60 times": pickle.dumps(("x", None, (_doubled(60),), {})),
        "a list in itself": pickle.dumps(("x", None, (_cycle(),), {})),
        "a huge memo": b"\x80\x04]r\xff\xff\xff\x7f.",
        "a huge bytearray": b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x0f.",
        "a number of a million digits": b'["x", null, [' + b"9" * 1_000_000 + b"], {}]",
    }


def _doubled(times: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(times):
        value = [value, value]
    return value


def _cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def hostile_fields(canary: Path) -> dict[str, dict[str, Any]]:
    gadget = pickle.dumps(Gadget(canary))
    touch = zlib.compress(plain("os.system", [f"touch {canary}"]))
    webhook = [{"url": f"http://127.0.0.1:9/{canary}", "job_status": "failed", "method": "POST", "headers": {}}]
    return {
        "meta": {"meta": gadget},
        "result": {"result": gadget},
        "success callback": {"success_callback_name": "os.abort", "success_callback_timeout": 5},
        "failure callback": {"failure_callback_name": "os.abort"},
        "stopped callback": {"stopped_callback_name": "os.abort"},
        "webhooks": {"webhooks": json.dumps(webhook)},
        "status": {"status": "nonsense"},
        "times": {"created_at": "yesterday", "enqueued_at": "x", "started_at": b"\xff"},
        "numbers": {"timeout": "x", "result_ttl": "x", "failure_ttl": "x", "retries_left": "x"},
        "texts": {"worker_name": b"\xff", "origin": b"\xff\xfe", "description": b"\xff"},
        "dependencies": {"dependency_ids": "[[[", "allow_dependency_failures": "x"},
        "times, in a later attempt": {"created_at": "yesterday", "number_of_retries": 5},
        "attempts": {"number_of_retries": "x"},
        "retries without end": {"retries_left": 10**12, "number_of_retries": -(10**12)},
        "intervals": {"retry_intervals": '["x"]', "retries_left": 2},
        "exception": {"exc_info": b"x\x9c" + b"\x00" * 10},
        "a bomb": {"data": bomb()},
        "a bomb of exception": {"exc_info": bomb()},
        "our mark": {"backgrounded": "nonsense"},
        "a line of a log": {"description": "x\n12:00:00 Worker root: all is well\x1b[2J"},
        "os.system and all of it": {"data": touch, "meta": gadget, "result": gadget, "retries_left": 2},
    }


def test_a_worker_of_ours_runs_nothing_of_it_and_goes_on(handler, redis, safe_worker, canary, tag):
    ids = {name: write(redis, data) for name, data in hostile_data(canary).items()}
    bad = plain("os.system", [f"touch {canary}"])
    ids |= {name: write(redis, bad, **fields) for name, fields in hostile_fields(canary).items()}
    redis.rpush("rq:queue:safe", "no such job", "../../x", "", ":", "a" * 10_000)
    redis.set("rq:job:astring", "x")
    redis.rpush("rq:queue:safe", "astring")
    good = [Item(tag).backgrounded(queue="safe").echo(number) for number in range(20)]
    assert [job.result(timeout=60) for job in good] == list(range(20))
    states = {name: handler.state(id) for name, id in ids.items()}
    assert set(states.values()) == {"kept"}, states
    assert safe_worker.process.poll() is None
    assert not canary.exists()
    kept = {kept.id: kept for kept in handler.kept()}
    assert kept.keys() >= set(ids.values())
    assert all(str(canary) not in kept[id].reason for id in ids.values())
    assert not canary.exists()
    assert "all is well" not in [line[-11:] for line in safe_worker.log.splitlines() if line.startswith("12:00:00")]
    del ids["texts"]  # it would go back to the queue that it says it came from
    for name in ("os.system", "gadget", "a bomb"):
        handler.replay(ids[name])
    for id in ids.values():
        eventually(lambda id=id: handler.state(id) == "kept")
        handler.forget(id)
    assert not canary.exists()
    redis.delete("rq:job:astring")


def test_a_plain_worker_runs_what_is_written(redis, plain_worker, canary):
    """The control: what the documentation warns of, and what the tests here would not see otherwise."""
    write(redis, pickle.dumps(("os.system", None, (f"touch {canary}",), {})), queue="plain")
    eventually(canary.exists)


def test_callbacks_of_a_job_that_may_run_are_not_called(handler, redis, safe_worker, tag, starts):
    fields = {"success_callback_name": "os.abort", "failure_callback_name": "os.abort", "failure_ttl": -1}
    good = write(redis, plain("x", [wire(tag)]), **fields)
    bad = write(redis, plain("x", [wire(tag, method="fail")]), **fields)
    eventually(lambda: handler.state(good) == "succeeded")
    eventually(lambda: handler.state(bad) == "failed")
    assert len(starts(tag)) == 2


def test_a_dependency_on_a_foreign_job_runs_nothing_foreign(handler, redis, safe_worker, canary, tag):
    child = Item(tag).backgrounded(queue="nobody").echo(1)
    parent = write(redis, plain("os.system", [f"touch {canary}"]), allow_dependency_failures=1)
    redis.sadd(f"rq:job:{parent}:dependents", child.id, "no such job")
    eventually(lambda: handler.state(parent) == "kept")
    assert Item(tag).backgrounded(queue="safe").echo(7).result(timeout=60) == 7
    assert not canary.exists()


@pytest.mark.parametrize("field", ["data", "meta", "result", "backgrounded"])
def test_asking_never_unpickles_a_name(handler, redis, canary, field):
    gadget = pickle.dumps(Gadget(canary))
    for status in ("queued", "finished", "failed", "started", "scheduled", "deferred", "canceled", "stopped"):
        id = write(redis, plain("x", [wire()]), queue="asked", status=status, **{field: gadget})
        redis.xadd(f"rq:results:{id}", {"type": 1, "return_value": b64encode(gadget), "exc_string": b64encode(bomb())})
        redis.zadd("rq:failed:asked", {id: -1})
        redis.sadd("rq:queues", "rq:queue:asked")
        handler.state(id)
        if status == "finished":
            with pytest.raises(NoResult, match="cannot be read"):
                handler.result(id, 0)
        list(handler.kept())
        if status == "failed":
            handler.replay(id)
        handler.cancel(id)
    redis.delete("rq:failed:asked")
    assert not canary.exists()


def test_a_result_that_is_hostile_json_is_an_error_of_ours(handler, redis):
    id = write(redis, plain("x", [wire()]), queue="asked", status="finished")
    redis.xadd(f"rq:results:{id}", {"type": 1, "return_value": b"!!!"})
    with pytest.raises(NoResult):
        handler.result(id, 0)


def test_a_value_of_a_job_is_plain_in_both_formats(handler, redis, safe_worker, tag):
    """The worker of ours reads what pickle wrote, as long as it is plain: both kinds of workers may serve a queue."""
    value = {"a": [1, 2.5, None, True, "ü", 2**70, (1, 2), b"\x00", {"b": {1, 2}}]}
    assert Item(tag).backgrounded(queue="safe", retry=Retry(1)).echo(value).result(timeout=60) == value
    data = zlib.decompress(redis.hget(RQJob.key_for(Item(tag).backgrounded(queue="nobody").echo(value).id), "data"))
    assert data[:1] == b"\x80"
    Queue("nobody", connection=redis).empty()
