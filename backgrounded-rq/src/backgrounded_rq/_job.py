"""How is a job of RQ read without trusting whoever wrote it?

RQ's own `Job` unpickles what it finds in Redis, in the worker and in every process that asks for a state, and calls
whatever function is named there. `Job` here reads plain values only, whether they were written by RQ's pickle
serializer or by its JSON serializer, and runs one function only: ours.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from backgrounded import ConfigurationError, load_plugins
from backgrounded.errors import DecodeError
from backgrounded.handler import printable
from redis.exceptions import ResponseError
from rq.exceptions import NoSuchJobError
from rq.job import Job as RQJob
from rq.serializers import DefaultSerializer, JSONSerializer

PICKLE_MARK: Final = b"\x80"
"""How every pickle of protocol 2 or later begins, and no JSON text does."""
MOST_BYTES: Final = 32 * 2**20
"""What a job's data may unpack to. Far more than any wire; a few kilobytes of zlib can hold gigabytes."""
MOST_RETRIES: Final = 2
"""How often a job that has no retries of ours may start again, whatever its hash says."""
UNREADABLE: Final = "backgrounded_rq.run.unreadable"

_PLAIN: Final = """
PROTO FRAME MARK STOP MEMOIZE BINGET LONG_BINGET NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT
SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM
SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
"""
"""The opcodes that pickle writes for dicts, lists, tuples, strings, bytes, numbers, booleans and None. None of them
names anything else, and none makes the reader set aside more memory than there are bytes."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError("a name in a job's data: only plain values are read")


class PlainSerializer:
    """Reads plain values in either of RQ's formats; writes in the one it was made for."""

    def __init__(self, *, pickled: bool) -> None:
        self._pickled = pickled

    def dumps(self, obj: Any) -> bytes:
        if self._pickled:
            return pickle.dumps(obj, protocol=pickle.HIGHEST_PROTOCOL)
        return json.dumps(obj).encode()

    @staticmethod
    def loads(data: bytes) -> Any:
        """Raises UnpicklingError, ValueError or RecursionError for anything but plain values."""
        if data[:1] == PICKLE_MARK:
            return _unpickle(data)
        return json.loads(data.decode("utf-8"))


def _unpickle(data: bytes) -> Any:
    import pickletools  # here, not above: it builds its tables of opcodes first, and callers hardly ever need them

    plain = frozenset(_PLAIN.split())
    for opcode, _, _ in pickletools.genops(data):
        if opcode.name not in plain:
            raise pickle.UnpicklingError(f"{opcode.name} in a job's data: only plain values are read")
    return _PlainUnpickler(io.BytesIO(data)).load()


_WRITERS: Final = {True: PlainSerializer(pickled=True), False: PlainSerializer(pickled=False)}


class Job(RQJob):
    """RQ's job, of which only the call of a method by this package runs: no other function, callback or webhook.

    Give it to a worker: `rq worker -S json -j backgrounded_rq.Job`. What such a worker writes is in the format in which
    the job came, so that workers with and without it can serve one queue. What cannot be read does not end the worker:
    it becomes a call that is refused, and so is kept. A serializer of your own (`-S shop.Serializer`) is trusted.
    """

    def __init__(self, id: str | None = None, connection: Any = None, serializer: Any = None) -> None:
        super().__init__(id, connection=connection, serializer=serializer)
        self.serializer: Any
        if self.serializer in (DefaultSerializer, JSONSerializer) or isinstance(self.serializer, PlainSerializer):
            self.serializer = _WRITERS[False]
        self._attempts_read = 0.0

    @classmethod
    def fetch(cls, id: str, connection: Any = None, serializer: Any = None) -> Job:
        """Raises NoSuchJobError also for what cannot be a job's id, or is no hash: RQ's workers go on at that error.

        A worker fetches a job before it forks for it: what is loaded here is loaded once, and not for each job.
        """
        from . import run  # noqa: F401  # here, not above: `run` imports this module

        with suppress(ConfigurationError):  # the jobs will be kept, and say so
            load_plugins()
        try:
            return super().fetch(id, connection=connection, serializer=serializer)  # type: ignore[return-value] # is cls
        except (ValueError, TypeError, ResponseError) as error:
            raise NoSuchJobError(f"no job of RQ: {type(error).__name__}") from error

    def restore(self, raw_data: Mapping[bytes, bytes]) -> None:
        fields = {key: value for key, value in raw_data.items() if not _is_dropped(key)}
        if b"data" not in fields:
            raise NoSuchJobError("no job of RQ: no data")
        data = _inflate(fields[b"data"])
        fields[b"data"] = b""  # RQ would unpack it again, without a bound
        if isinstance(self.serializer, PlainSerializer):
            self.serializer = _WRITERS[data[:1] == PICKLE_MARK]
        if not self._is_meta(fields.get(b"meta", b"")):
            del fields[b"meta"]  # it stays in Redis as it is
        try:
            super().restore(fields)
        except Exception:
            super().restore({b"data": b"", b"origin": fields.get(b"origin", b"").decode(errors="replace").encode()})
            self.timeout, self.failure_ttl = -1, -1
        self.data = data
        self._attempts_read = _number(fields.get(b"number_of_retries"))
        self.origin, self.description = printable(self.origin), printable(self.description or "")
        if self.retries_left is not None:
            self.retries_left = min(self.retries_left, MOST_RETRIES)

    @property
    def should_retry(self) -> bool:
        return super().should_retry or self._has_gone_on()

    def retry(self, queue: Any, pipeline: Any) -> None:
        """RQ's way on after a death, unless the run has said before it what comes next: then that would come twice.

        RQ takes a run for dead that was killed between that and its process's end, and one whose process ends in the
        very moment in which its worker looks after it, once in `--job-monitoring-interval` seconds: it loses the exit
        status to its own alarm.
        """
        if not self._has_gone_on():
            super().retry(queue, pipeline)

    def _has_gone_on(self) -> bool:
        """Whether somebody has counted an attempt since this object was read."""
        return _number(self.connection.hget(self.key, "number_of_retries")) > self._attempts_read

    def _is_meta(self, data: bytes) -> bool:
        try:
            return not data or isinstance(self.serializer.loads(data), dict)
        except Exception:
            return False

    def _deserialize_data(self) -> None:
        """RQ's name, instance, arguments and keywords. What is not a call of ours becomes one that will be refused."""
        try:
            name, _, [wire], kwargs = self.serializer.loads(self.data)
            if not isinstance(name, str):
                raise TypeError("the name of the function is no text")
            name, kwargs = printable(name), {key: kwargs[key] for key in ("handler", "failure_ttl") if key in kwargs}
        except Exception:
            name, wire, kwargs = UNREADABLE, None, {}
        self._func_name, self._instance, self._args, self._kwargs = name, None, (wire,), kwargs

    @property
    def func(self) -> Any:
        from .run import perform  # here, not above: `run` is imported by workers, this module by callers as well

        return perform


def _number(field: bytes | str | None) -> float:
    """What RQ counts in a job's hash. What somebody has written there is above nothing, and nothing above it."""
    try:
        return int(field or 0)
    except ValueError:
        return math.nan


def _is_dropped(field: bytes) -> bool:
    """What would call somebody else, and what RQ unpacks although nobody needs it any more."""
    return b"callback" in field or b"webhook" in field or field in (b"result", b"exc_info")


def _inflate(data: bytes) -> bytes:
    """What RQ stored, unpacked; as it is where it cannot be, or would be too much."""
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(data, MOST_BYTES)
    except zlib.error:
        return data
    return data if unpacker.unconsumed_tail else plain


def wire_of(job: RQJob) -> Any:
    """The wire that a job carries. Raises DecodeError when it carries none."""
    try:
        [wire] = job.args
    except Exception as error:
        raise DecodeError("the job of RQ holds no call of this package") from error
    if wire is None:
        raise DecodeError("the job of RQ holds no call of this package")
    return wire
