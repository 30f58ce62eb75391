"""Run any method of any object in the background, on the engine you have.

    user.backgrounded(queue="custom").do_stuff(1)

runs `User.do_stuff(1)` in a worker of the configured engine. See `Backgrounded`, `background`, `later` and
`backgroundable` for the ways to call, `configure` for the engines, `Job` for what comes back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._configuration import (
    add_converter,
    add_locator,
    configure,
    get_handler,
    load_plugins,
    register_plugin,
    register_service,
    reset,
    using,
)
from ._proxy import Backgrounded, abackground, alater, background, backgroundable, install, later
from ._runtime import CurrentJob, current_job, load_app, perform, worker_handler
from .calls import Call, Options, Retry, Unique
from .codec import Converter, Limits
from .errors import (
    BackgroundedError,
    BadArguments,
    BadSignature,
    BatchError,
    CallError,
    ConfigurationError,
    DecodeError,
    Duplicate,
    EncodeError,
    EnqueueError,
    HandlerNotFound,
    InvalidOption,
    JobFailed,
    NoResult,
    NotAllowed,
    PerformError,
    Refused,
    ResultError,
    ResultTimeout,
    SignatureChanged,
    TargetGone,
    TargetNotFound,
    TargetUnavailable,
    UnknownMethod,
    UnsupportedOption,
)
from .handler import State
from .jobs import Job, MapResult, batch, job
from .references import Locator

if TYPE_CHECKING:
    from .hookspecs import hookimpl as hookimpl

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`hookimpl` is found when it is asked for: only plugins need it, and it imports pluggy."""
    if name == "hookimpl":
        from .hookspecs import hookimpl

        return hookimpl
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Backgrounded",
    "BackgroundedError",
    "BadArguments",
    "BadSignature",
    "BatchError",
    "Call",
    "CallError",
    "ConfigurationError",
    "Converter",
    "CurrentJob",
    "DecodeError",
    "Duplicate",
    "EncodeError",
    "EnqueueError",
    "HandlerNotFound",
    "InvalidOption",
    "Job",
    "JobFailed",
    "Limits",
    "Locator",
    "MapResult",
    "NoResult",
    "NotAllowed",
    "Options",
    "PerformError",
    "Refused",
    "ResultError",
    "ResultTimeout",
    "Retry",
    "SignatureChanged",
    "State",
    "TargetGone",
    "TargetNotFound",
    "TargetUnavailable",
    "Unique",
    "UnknownMethod",
    "UnsupportedOption",
    "abackground",
    "add_converter",
    "add_locator",
    "alater",
    "background",
    "backgroundable",
    "batch",
    "configure",
    "current_job",
    "get_handler",
    "hookimpl",
    "install",
    "job",
    "later",
    "load_app",
    "load_plugins",
    "perform",
    "register_plugin",
    "register_service",
    "reset",
    "using",
    "worker_handler",
]
