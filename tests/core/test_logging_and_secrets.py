"""Does an argument ever appear where it should not? And what may a log's reader rely on?"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import backgrounded
import pytest
from backgrounded import (
    Backgrounded,
    EnqueueError,
    background,
    backgroundable,
    batch,
    later,
    perform,
)
from backgrounded._configuration import runtime
from backgrounded.handler import Delivery, Keep, Kept, Verdict
from backgrounded.handlers.memory import MemoryHandler

import shop.jobs
from shop.models import Point, User

CANARY = "canary-5f0c1a"


class Secret(Backgrounded):
    """Holds it as an attribute, takes it, returns it, and shows it to whoever prints it."""

    def __init__(self, text: str = CANARY) -> None:
        self.text = text

    def __backgrounded_args__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.text,), {}

    def __repr__(self) -> str:
        return f"Secret({self.text})"

    def take(self, value: Any = None, **more: Any) -> None: ...

    def give(self) -> str:
        return self.text

    def give_live(self) -> object:
        return Live(self.text)

    def fail(self, value: Any = None) -> None:
        raise RuntimeError

    def one(self, n: int) -> None: ...

    def nest(self) -> None:
        background(shop.jobs).give(Live(self.text))


@dataclass
class Live:
    text: str
    lock: Any = None

    def __post_init__(self) -> None:
        self.lock = threading.Lock()


class Unwilling:
    def __init__(self, text: str = CANARY) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"Unwilling({self.text})"


class Store:
    name = "store"

    def refer(self, obj: Any) -> Any:
        return obj.text if type(obj) is Unwilling else None

    def find(self, key: Any) -> Any:
        raise ConnectionError(f"no {key}")


class Down:
    protocol = 1
    features: frozenset[Any] = frozenset()

    def enqueue(self, call: Any) -> None:
        raise EnqueueError("the broker is down")


@pytest.fixture
def outputs(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., str]]:
    """All that was said: messages, arguments and extras of log records, and the texts of errors that are ours."""
    caplog.set_level(logging.DEBUG)

    def gather(*more: Any) -> str:
        said = [repr(item) + str(item) for item in more]
        for record in caplog.records:
            said += [record.getMessage(), repr(record.args), repr(vars(record))]
            said.append(logging.Formatter().format(record))
        return "\n".join(said)

    return gather


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error of ours and its causes, as a traceback would print them."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def wire(method: str, *args: Any, **fields: Any) -> dict[str, Any]:
    target = {"built": ["test_logging_and_secrets:Secret", [CANARY], {}]}
    return {"v": 1, "id": "1", "target": target, "method": method, "args": list(args), **fields}


def in_a_batch() -> None:
    with batch():
        Secret().backgrounded(handler="down").take(CANARY)


AT_THE_CALL: dict[str, Callable[[], Any]] = {
    "too many arguments": lambda: Secret().backgrounded.one(1, CANARY),
    "unknown keyword": lambda: Secret().backgrounded.one(m=CANARY),
    "cannot travel": lambda: Secret().backgrounded.take(Unwilling()),
    "cannot travel, deep": lambda: Secret().backgrounded.take([{"x": (Unwilling(),)}]),
    "cannot travel, beside it": lambda: Secret().backgrounded.take(CANARY, x=threading.Lock()),
    "cannot travel, key of a dict": lambda: Secret().backgrounded.take({Unwilling(): 1}),
    "cannot travel, dataclass": lambda: Secret().backgrounded.take(Live(CANARY)),
    "too deep": lambda: Secret().backgrounded.take(nested(CANARY, 40)),
    "too long": lambda: Secret().backgrounded.take(CANARY * 100_000),
    "NUL": lambda: Secret().backgrounded.take(CANARY + "\0"),
    "surrogate": lambda: Secret().backgrounded.take(CANARY + "\ud800"),
    "target cannot travel": lambda: background(Unwilling()).work(),
    "not opted in": lambda: background(Point(CANARY)).nothing(),  # type: ignore[arg-type]
    "option not kept": lambda: Secret().backgrounded(delay=5).take(CANARY),
    "overridden": lambda: background(overridden()).take(CANARY),
    "dead broker": lambda: background(Secret(), handler="down").take(CANARY),
    "map": lambda: later(Secret().take).map([CANARY, Unwilling()]),
    "map, dead broker": lambda: later(Secret().take, handler="down").map([CANARY]),
    "batch": in_a_batch,
    "generator": lambda: background(User()).numbers(CANARY),
    "no such handler": lambda: Secret().backgrounded(handler="nothing").take(CANARY),
}


def nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def overridden() -> Any:
    secret = Secret()
    secret.take = lambda value=None: None  # type: ignore[assignment, method-assign]
    return secret


@pytest.mark.parametrize("case", AT_THE_CALL)
def test_no_error_of_a_call_shows_a_value(case: str, outputs: Callable[..., str]) -> None:  # R26, P18
    backgrounded.configure("inline")
    backgrounded.configure(Down, name="down")  # type: ignore[arg-type]
    with pytest.raises(backgrounded.BackgroundedError) as caught:
        AT_THE_CALL[case]()
    assert CANARY not in outputs(*chain(caught.value))


IN_THE_WORKER: dict[str, Any] = {
    "fails": wire("fail", CANARY),
    "fails, tried again": wire("fail", CANARY, options={"retry": {"max": 1}}),
    "succeeds": wire("take", CANARY, kwargs={"x": CANARY}),
    "returns it": wire("give"),
    "returns what cannot travel": wire("give_live"),
    "nested call that cannot travel": wire("nest"),
    "too many arguments": wire("one", 1, CANARY),
    "unknown keyword": wire("one", kwargs={"m": CANARY}),
    "keyword's name": wire("take", kwargs={f"{CANARY} x": 1}),
    "unknown method": wire("nothing", CANARY),
    "unknown tag": wire("take", {"$nothing": CANARY}),
    "bad text": wire("take", {"$decimal": CANARY}),
    "bad date": wire("take", {"$datetime": CANARY}),
    "bad path": wire("take", {"$uuid": CANARY}),
    "set twice": wire("take", {"$set": [CANARY, CANARY]}),
    "not a field": wire("take", {"$dataclass": ["test_logging_and_secrets:Live", {CANARY: 1}]}),
    "bad headers": wire("take", headers={CANARY: {"$nothing": CANARY}}),
    "store down": wire("take", {"$ref": ["store", CANARY]}),
    "store down, target": {**wire("take"), "target": {"ref": ["store", CANARY]}},
    "store down, tried again": wire("take", {"$ref": ["store", CANARY]}, options={"retry": {"max": 1}}),
    "no such locator": wire("take", {"$ref": [CANARY, 1]}),
    "no such service": {**wire("take"), "target": {"service": CANARY}},
    "value as target": {**wire("take"), "target": {"value": {"secret": CANARY}}},
    "value as target, tag": {**wire("take"), "target": {"value": {"$nothing": CANARY}}},
    "expired": wire("take", CANARY, options={"expires": 1}),
    "no JSON": f'{{"v": 1, "{CANARY}'.encode(),
    "no JSON at all": CANARY.encode(),
    "key twice": f'{{"{CANARY}": 1, "{CANARY}": 2}}'.encode(),
    "bad id": {**wire("take"), "id": f"{CANARY} \n"},
    "bad option": wire("take", options={"timeout": CANARY}),
}


@pytest.mark.parametrize("case", IN_THE_WORKER)
def test_no_log_and_no_verdict_of_a_run_shows_a_value(case: str, outputs: Callable[..., str]) -> None:  # R8, R26
    backgrounded.configure("null")
    backgrounded.add_locator(Store())
    try:
        perform(IN_THE_WORKER[case], Delivery())
    except (Verdict, backgrounded.BackgroundedError) as error:
        ours = [item for item in chain(error) if isinstance(item, (Verdict, backgrounded.BackgroundedError))]
        assert CANARY not in outputs(*ours)
    except RuntimeError:
        pass
    assert CANARY not in outputs()


def test_the_methods_own_message_stays_in_its_exception_and_out_of_our_logs(outputs: Callable[..., str]) -> None:
    backgrounded.configure("null")
    with pytest.raises(ValueError, match=CANARY):
        perform({**wire("fail"), "target": {"module": "shop.jobs"}, "args": [CANARY]})
    assert CANARY not in outputs()


def test_no_repr_shows_a_value(memory: MemoryHandler, outputs: Callable[..., str]) -> None:
    secret = Secret()
    job = secret.backgrounded(queue="q").take(CANARY, x=CANARY)
    with batch() as jobs:
        secret.backgrounded.take(CANARY)
    shown = [
        *[memory.calls[0], memory.calls[0].options, memory.calls, job, jobs, secret.backgrounded, background(secret)],
        *[secret.backgrounded.take, later(secret.take), secret.abackgrounded, backgrounded.get_handler()],
    ]
    assert CANARY not in outputs(*shown)
    memory.run()
    assert CANARY not in outputs(job, Kept("1", "why", wire("take", CANARY)))
    assert CANARY not in outputs(runtime().codec.read(wire("take", CANARY)))


def test_the_current_job_shows_no_header() -> None:
    backgrounded.configure("null")
    seen = backgrounded.CurrentJob("1", "n", None, 1, None, {"token": CANARY})
    assert CANARY not in repr(seen)


@backgroundable
def work() -> None: ...


EXTRA = ["job_id", "job_name", "job_queue", "job_handler"]


def test_the_extras_of_a_hand_over_are_stable(memory: MemoryHandler, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "backgrounded")
    job = User().backgrounded(queue="q").do_stuff()
    (record,) = caplog.records
    assert record.getMessage() == "enqueued shop.models.User.do_stuff"  # K158
    found = [vars(record)[key] for key in EXTRA]
    assert found == [job.id, "shop.models.User.do_stuff", "q", "default"]
    assert [key for key in vars(record) if key.startswith("job_")] == EXTRA
    assert memory.calls


@pytest.mark.parametrize(
    ("given", "delivery", "state", "level", "error"),
    [
        (wire("take"), None, "succeeded", logging.INFO, None),
        (wire("fail"), None, "failed", logging.WARNING, "RuntimeError"),
        (wire("fail", options={"retry": {"max": 1}}), Delivery(), "scheduled", logging.INFO, "RuntimeError"),
        (wire("nothing"), None, "kept", logging.ERROR, "TargetNotFound"),
        (wire("take", options={"expires": 1}), None, "expired", logging.INFO, None),
    ],
)
def test_the_extras_of_a_run_are_stable(
    caplog: pytest.LogCaptureFixture, given: Any, delivery: Any, state: str, level: int, error: str | None
) -> None:
    backgrounded.configure("null")
    caplog.set_level(logging.INFO, "backgrounded")
    with contextlib.suppress(Verdict, RuntimeError):
        perform(given, delivery)
    (record,) = caplog.records
    extra = {key: value for key, value in vars(record).items() if key.startswith("job_")}
    assert record.levelno == level
    assert state in record.getMessage()
    assert "Secret." in record.getMessage()
    assert extra.pop("job_seconds") >= 0
    assert extra == {
        "job_id": "1",
        "job_name": f"test_logging_and_secrets.Secret.{given['method']}",
        "job_queue": None,
        "job_handler": "default",
        "job_attempt": 1,
        "job_state": state,
        "job_error": error,
    }


def test_a_wire_that_cannot_be_read_is_logged_with_its_code(caplog: pytest.LogCaptureFixture) -> None:
    backgrounded.configure("null")
    with pytest.raises(Keep):
        perform(b"nonsense")
    (record,) = caplog.records
    assert (record.levelno, vars(record)["job_state"], vars(record)["job_code"]) == (logging.ERROR, "kept", "bad-wire")


def test_our_logger_is_one_and_says_nothing_below_warning_by_default(memory: MemoryHandler, capfd: Any) -> None:  # K161
    User().backgrounded.do_stuff()
    memory.run()
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("backgrounded").handlers == []
