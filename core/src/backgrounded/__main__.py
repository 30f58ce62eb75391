"""What can be done from a shell? `python -m backgrounded --help`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from ._configuration import HANDLERS, entry_points, load_handler, runtime
from .errors import BackgroundedError
from .handler import OPTION_FEATURES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, or 1 when it failed with a reason on standard error."""
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed) or 0)
    except BackgroundedError as error:
        print(f"backgrounded: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="backgrounded", description="Run any method of any object in the background.")
    commands = parser.add_subparsers(title="commands", required=True)
    demo = commands.add_parser("demo", help="run a method of a tiny application in another process, and show it")
    demo.add_argument("--handler", default="rq", help="the engine to show it on (default: rq)")
    demo.set_defaults(run=_demo)
    handlers = commands.add_parser("handlers", help="list the installed handlers and the options that they keep")
    handlers.add_argument("--json", action="store_true", help="for machines")
    handlers.set_defaults(run=_handlers)
    manager = runtime().hooks.manager
    if manager is not None:
        manager.hook.backgrounded_commands(commands=commands)
    return parser


def _demo(parsed: argparse.Namespace) -> int:
    from ._demo import demo  # here, not above: it is of no use to the other commands

    return demo(parsed.handler)


def _handlers(parsed: argparse.Namespace) -> int:
    found = {entry.name: sorted(load_handler(entry.name).features) for entry in entry_points(HANDLERS)}
    if parsed.json:
        print(json.dumps(found, indent=2, sort_keys=True))
        return 0
    for name, features in sorted(found.items()):
        kept = [option for option, feature in OPTION_FEATURES.items() if feature in features]
        print(f"{name:10} keeps {', '.join(kept)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
