"""Is what is promised true here, with the engine as it is set up now? `backgrounded doctor`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from ._configuration import Configuration
from .errors import ConfigurationError
from .handler import Feature, Finding, Guarantees, kept_ids


def doctor(configuration: Configuration, *, as_json: bool) -> int:
    """Print what a handler promises, and what makes it untrue. Returns 1 if something does, else 0."""
    handler: Any = configuration.handler
    guarantees: Guarantees = getattr(handler, "guarantees", Guarantees())
    findings = list(_examine(handler))
    if as_json:
        found = [asdict(finding) for finding in findings]
        print(
            json.dumps({"handler": configuration.kind, "guarantees": asdict(guarantees), "findings": found}, indent=2)
        )
    else:
        for line in _told(configuration.kind, guarantees, findings):
            print(line)
    return int(any(finding.gap for finding in findings))


def _examine(handler: Any) -> Iterator[Finding]:
    """What the handler itself finds, and what every engine has. Whatever is raised says that nobody can be asked."""
    try:
        yield from getattr(handler, "examine", tuple)()
        yield from _examine_kept(handler)
    except Exception as error:
        yield Finding(
            f"The engine cannot be asked: {type(error).__name__}: {error}",
            "look whether it runs, and whether the URL is the right one",
            gap=True,
        )


def _examine_kept(handler: Any) -> Iterator[Finding]:
    if Feature.KEPT not in handler.features:
        return
    try:
        count = sum(1 for _ in kept_ids(handler))
    except ConfigurationError as error:  # there is nothing yet that could be asked
        yield Finding(str(error), "look whether the URL is the right one")
        return
    if count:
        yield Finding(f"Jobs that were set aside: {count}.", "backgrounded kept, then backgrounded replay or forget")


def _told(kind: str, guarantees: Guarantees, findings: Iterable[Finding]) -> Iterator[str]:
    recovery = "" if guarantees.recovery_s is None else f", again {guarantees.recovery_s:g} s after a worker's death"
    yield f"{kind}: delivery {guarantees.delivery}{recovery}"
    yield from (f"  {note}" for note in guarantees.notes)
    for finding in findings:
        yield f"{'GAP' if finding.gap else 'advice'}: {finding.what}"
        yield f"  Way out: {finding.way_out}"
