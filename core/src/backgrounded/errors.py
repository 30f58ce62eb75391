"""What can go wrong, and whose move is it?

    BackgroundedError
    |-- ConfigurationError            fix the configuration
    |   `-- HandlerNotFound           install the adapter, or fix its name
    |-- CallError                     fix the code that calls; nothing was sent
    |   |-- UnknownMethod             (AttributeError) no such public method
    |   |-- BadArguments              (TypeError) arguments do not fit the signature
    |   |-- InvalidOption             (ValueError) an option's value makes no sense
    |   |-- UnsupportedOption         the handler does not keep this option
    |   |-- EncodeError               (TypeError) a value or target cannot travel
    |   |-- NotAllowed                the target has not opted in and is not in `allow`
    |   `-- Duplicate                 a job with the same unique key is on its way
    |-- EnqueueError                  the hand-over failed; trying again can help
    |   `-- BatchError                ... for some of many
    |-- PerformError                  a job was not run in the worker
    |   |-- DecodeError               (ValueError) the wire is not one of ours
    |   |-- BadSignature              the wire is not signed with a key of ours
    |   |-- Refused                   the wire names something that may not be called
    |   |-- TargetNotFound            (LookupError) no such class, module, method or service
    |   |-- TargetGone                the record was looked for and is not there any more
    |   |-- TargetUnavailable         the store could not be asked; trying again can help
    |   `-- SignatureChanged          the arguments no longer fit the method
    `-- ResultError                   a result could not be read
        |-- JobFailed                 the job ended in an exception
        |-- ResultTimeout             (TimeoutError) it has not ended yet
        `-- NoResult                  it will never have one

Every error names what, where and the way out, carries the parts as attributes, and has a stable `code` for machines.
No message holds the value of an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class BackgroundedError(Exception):
    """The root of everything this package raises by itself. It can be copied and pickled: processes pass errors on."""

    code: ClassVar[str] = "error"

    def __reduce__(self) -> tuple[Any, ...]:
        return _as_it_was, (type(self), self.args), vars(self)


def _as_it_was(cls: type[BackgroundedError], args: tuple[Any, ...]) -> BackgroundedError:
    """An error again, without its class's `__init__`, which wants the parts and not the message."""
    return cls.__new__(cls, *args)


class ConfigurationError(BackgroundedError):
    """The configuration makes no sense. Trying again does not help."""

    code = "configuration"


class HandlerNotFound(ConfigurationError):
    """No installed distribution offers a handler of this name. Trying again does not help.

    `name` is what was asked for, `installed` the names that exist.
    """

    code = "handler-not-found"

    def __init__(self, name: str, installed: Sequence[str]) -> None:
        self.name = name
        self.installed = tuple(sorted(installed))
        super().__init__(
            f"No handler is named {name!r}. Installed: {', '.join(self.installed) or 'none'}. "
            f"Try: pip install backgrounded-{name}"
        )


class CallError(BackgroundedError):
    """The call itself is wrong: nothing was sent, and trying again does not help."""

    code = "call"


class UnknownMethod(CallError, AttributeError):
    """The target has no public method of this name. Trying again does not help.

    It is an AttributeError too, because `hasattr`, `copy`, mocks and IPython probe proxies for names.
    """

    code = "unknown-method"


class BadArguments(CallError, TypeError):
    """The arguments do not fit the method's signature. Trying again does not help."""

    code = "bad-arguments"


class InvalidOption(CallError, ValueError):
    """An option's value makes no sense, on any engine. `option` is its name. Trying again does not help."""

    code = "invalid-option"

    def __init__(self, option: str, message: str) -> None:
        self.option = option
        super().__init__(f"{option}: {message}")


class UnsupportedOption(CallError):
    """The handler does not keep this option, and options are never dropped in silence.

    `option` and `handler` are names, `kept` the options that the handler does keep. Trying again does not help; the
    way out is another handler, or `configure(..., ignore={option})`, which asks for leniency in writing.
    """

    code = "unsupported-option"

    def __init__(self, option: str, handler: str, kept: Sequence[str] = (), reason: str = "") -> None:
        self.option = option
        self.handler = handler
        self.kept = tuple(sorted(kept))
        because = f" ({reason})" if reason else ""
        super().__init__(
            f"Handler {handler!r} does not keep the option {option!r}{because}. "
            f"It keeps: {', '.join(self.kept) or 'no options'}."
        )


class EncodeError(CallError, TypeError):
    """A value or a target cannot travel. `path` says where it stands, such as `kwargs['items'][3]`.

    Trying again does not help: send a reference or a plain value, or register a converter or a locator.
    """

    code = "encode"

    def __init__(self, path: str, message: str) -> None:
        self.path = path
        super().__init__(f"{path}: {message}")


class NotAllowed(CallError):
    """The target has not opted in and does not stand in an allowed package. `name` says which.

    The caller applies the rule of the worker, so that the mistake shows at the call. Trying again does not help.
    """

    code = "not-allowed"

    def __init__(self, name: str, message: str) -> None:
        self.name = name
        super().__init__(f"{name}: {message}")


class Duplicate(CallError):
    """A job with the same unique key is waiting or running; `existing_id` is its id, `key` the key.

    Calling again succeeds once that job has ended, or when the key's `ttl` has passed.
    """

    code = "duplicate"

    def __init__(self, key: str, existing_id: str) -> None:
        self.key = key
        self.existing_id = existing_id
        super().__init__(f"A job with the unique key {key!r} is already on its way: {existing_id}.")


class EnqueueError(BackgroundedError):
    """The hand-over to the engine failed; the engine's own error is the cause. Trying again can help.

    `uncertain` tells whether the job may have arrived all the same (the reply was lost): then calling again may run it
    twice.
    """

    code = "enqueue"

    def __init__(self, message: str, *, uncertain: bool = False) -> None:
        self.uncertain = uncertain
        super().__init__(message)


class BatchError(EnqueueError):
    """Part of a batch was not handed over. `sent`, `unsent` and `unknown` are tuples of job ids, in the order of the
    calls. Sending the `unsent` ones again is safe, the `unknown` ones may then run twice.
    """

    code = "batch"

    def __init__(self, sent: Sequence[str], unsent: Sequence[str], unknown: Sequence[str]) -> None:
        self.sent = tuple(sent)
        self.unsent = tuple(unsent)
        self.unknown = tuple(unknown)
        super().__init__(
            f"{len(self.sent)} jobs were sent, {len(self.unsent)} were not, "
            f"of {len(self.unknown)} it is not known: see .sent, .unsent and .unknown for their ids.",
            uncertain=bool(self.unknown),
        )


class PerformError(BackgroundedError):
    """A job arrived in a worker and was not run. It is kept, with its payload and this reason."""

    code = "perform"


class DecodeError(PerformError, ValueError):
    """The wire is not one of ours, or not one this release can read. Trying again does not help.

    The message never quotes the payload; `path` says where in the wire the trouble stands.
    """

    code = "bad-wire"

    def __init__(self, message: str, *, path: str = "wire") -> None:
        self.path = path
        super().__init__(f"{path}: {message}")


class BadSignature(PerformError):
    """The wire is not signed with a key of this process. Trying again does not help."""

    code = "bad-signature"


class Refused(PerformError):
    """The wire names something that may not be called here. Trying again does not help."""

    code = "refused"


class TargetNotFound(PerformError, LookupError):
    """The class, module, method or service that the wire names does not exist in this worker.

    Trying again helps once a worker with the code runs: replay the job then.
    """

    code = "target-not-found"


class TargetGone(PerformError):
    """The store was asked and the record is not there any more. Trying again does not help."""

    code = "target-gone"


class TargetUnavailable(PerformError):
    """The store could not be asked; its own error is the cause. Trying again can help, and is done."""

    code = "target-unavailable"


class SignatureChanged(PerformError):
    """The arguments in the wire do not fit the method as this worker knows it. Trying again does not help."""

    code = "signature-changed"


class ResultError(BackgroundedError):
    """A result could not be read."""

    code = "result"


class JobFailed(ResultError):
    """The job ended in an exception. `type_name`, `message` and `traceback` are text.

    The original exception class is never looked up: whoever can write to a result store must not choose what is built
    in the process that reads it (CVE-2021-23727 was that mistake).
    """

    code = "job-failed"

    def __init__(self, type_name: str, message: str, traceback: str | None = None) -> None:
        self.type_name = type_name
        self.message = message
        self.traceback = traceback
        super().__init__(f"{type_name}: {message}" if message else type_name)


class ResultTimeout(ResultError, TimeoutError):
    """The job had not ended when the time was up. Asking again can help."""

    code = "result-timeout"


class NoResult(ResultError):
    """There is no result and there will be none: the job was cancelled, kept, expired, or the engine stores none."""

    code = "no-result"


def type_name(error: BaseException | type[BaseException]) -> str:
    """The dotted name of an exception's class, without `builtins`: "shop.errors.Busy", "ValueError"."""
    cls: Any = error if isinstance(error, type) else type(error)
    return str(cls.__qualname__) if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


__all__ = [
    "BackgroundedError",
    "BadArguments",
    "BadSignature",
    "BatchError",
    "CallError",
    "ConfigurationError",
    "DecodeError",
    "Duplicate",
    "EncodeError",
    "EnqueueError",
    "HandlerNotFound",
    "InvalidOption",
    "JobFailed",
    "NoResult",
    "NotAllowed",
    "PerformError",
    "Refused",
    "ResultError",
    "ResultTimeout",
    "SignatureChanged",
    "TargetGone",
    "TargetNotFound",
    "TargetUnavailable",
    "UnknownMethod",
    "UnsupportedOption",
]
