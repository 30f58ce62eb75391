"""How is a job of RQ read without trusting whoever wrote it?

RQ's own `Job` unpickles what it finds in Redis, in the worker and in every process that asks for a state, and calls
whatever function is named there. `Job` here reads plain values only, whether they were written by RQ's pickle
serializer or by its JSON serializer, and runs one function only: ours.
"""

from __future__ import annotations

import io
import json
import pickle
import zlib
from collections.abc import Mapping
from typing import Any, Final

from backgrounded.errors import DecodeError
from rq.job import Job as RQJob

PICKLE_MARK: Final = b"\x80"
"""How every pickle of protocol 2 or later begins, and no JSON text does."""


class _PlainUnpickler(pickle.Unpickler):
    """Builds dicts, lists, tuples, strings, bytes, numbers, booleans and None. It has no way to name anything else."""

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
        """Raises UnpicklingError or ValueError for anything but plain values."""
        if data[:1] == PICKLE_MARK:
            return _PlainUnpickler(io.BytesIO(data)).load()
        return json.loads(data.decode("utf-8"))


_WRITERS: Final = {True: PlainSerializer(pickled=True), False: PlainSerializer(pickled=False)}


class Job(RQJob):
    """RQ's job, of which only the call of a method by this package runs: no other function, callback or webhook.

    Give it to a worker: `rq worker -S json -j backgrounded_rq.Job`. What such a worker writes is in the format in which
    the job came, so that workers with and without it can serve one queue.
    """

    def __init__(self, id: str | None = None, connection: Any = None, serializer: Any = None) -> None:
        super().__init__(id, connection=connection, serializer=serializer)
        self.serializer: Any = _WRITERS[False]

    def restore(self, raw_data: Mapping[bytes, bytes]) -> Any:
        self.serializer = _WRITERS[_is_pickled(raw_data.get(b"data", b""))]
        restored = super().restore(raw_data)
        self.webhooks = []
        return restored

    @property
    def func(self) -> Any:
        from .run import perform  # here, not above: `run` is imported by workers, this module by callers as well

        return perform

    @property
    def success_callback(self) -> None:
        return None

    @property
    def failure_callback(self) -> None:
        return None

    @property
    def stopped_callback(self) -> None:
        return None


def _is_pickled(data: bytes) -> bool:
    try:
        start = zlib.decompressobj().decompress(data, 1)
    except zlib.error:
        start = data[:1]
    return start == PICKLE_MARK


def wire_of(job: RQJob) -> Any:
    """The wire that a job carries. Raises DecodeError when it carries none."""
    try:
        return job.args[0]
    except Exception as error:
        raise DecodeError("the job of RQ holds no call of this package") from error
