"""What may a plugin hook into?

A plugin is an object (a module, too) with functions marked `@backgrounded.hookimpl`, registered with
`backgrounded.register_plugin(plugin)` or found under the entry-point group `backgrounded.plugins`. Implement only what
you need: a hook that nobody implements costs nothing.

"Around" hooks are pluggy's wrappers: `@hookimpl(wrapper=True)`, with one `yield` where the real thing happens.

    @backgrounded.hookimpl(wrapper=True)
    def backgrounded_perform(job):
        with tracer.span(job.name, parent=job.headers.get("trace")):
            return (yield)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import pluggy

from .calls import Call, Options
from .codec import Converter
from .handler import State
from .references import Locator

if TYPE_CHECKING:
    import argparse

    from ._runtime import CurrentJob

PROJECT: Final = "backgrounded"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def backgrounded_headers(name: str, options: Options) -> Mapping[str, Any] | None:
    """Called at each call: what of the caller's context shall travel (trace, tenant, locale). The answers are merged;
    values are encoded like arguments. They come back as `current_job().headers`."""


@hookspec(firstresult=True)
def backgrounded_enqueue(calls: Sequence[Call]) -> Any:
    """Around (a wrapper) the hand-over of one call, or of one trip of a batch. Raising `Skip("aborted")` before the
    yield sends nothing and makes the jobs `aborted`; any other exception reaches the caller. After the yield the calls
    are sent, whatever the wrapper raises."""


@hookspec
def backgrounded_not_sent(calls: Sequence[Call], error: BaseException) -> None:
    """The hand-over failed with `error`, which is on its way to the caller."""


@hookspec(firstresult=True)
def backgrounded_perform(job: CurrentJob) -> Any:
    """Around (a wrapper) a run in the worker: the finding of the target and the method itself. The yield gives the
    method's return value, and what the wrapper returns is the job's result. Raising `Skip("aborted")` or
    `Skip("discarded")` before the yield ends the job without running it."""


@hookspec
def backgrounded_ended(job: CurrentJob, state: State, error: BaseException | None, seconds: float) -> None:
    """A run ended after so many seconds: `succeeded`, `failed`, `kept`, `scheduled` (it will be tried again), or what a
    `Skip` said. An exception here is logged and changes nothing."""


@hookspec
def backgrounded_converters() -> Iterable[Converter]:  # type: ignore[empty-body]  # a spec
    """Value types that shall be able to travel."""


@hookspec
def backgrounded_locators() -> Iterable[Locator]:  # type: ignore[empty-body]  # a spec
    """Ways to name objects and to find them again."""


@hookspec
def backgrounded_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add commands to `python -m backgrounded`: `commands.add_parser("mine").set_defaults(run=function)`; the function
    gets the parsed arguments and returns the exit code."""
