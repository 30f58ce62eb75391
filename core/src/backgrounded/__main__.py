"""What can be done from a shell? `python -m backgrounded --help`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._configuration import DEFAULT, HANDLERS, configuration_of, entry_points, load_handler, runtime
from ._runtime import load_app
from .errors import BackgroundedError, ConfigurationError
from .handler import OPTION_FEATURES, Feature


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
    demo.add_argument("--handler", default="sqlite", help="the engine to show it on (default: sqlite)")
    demo.set_defaults(run=_demo)
    worker = commands.add_parser("worker", help="become the worker of the configured engine, for these queues")
    worker.add_argument("queues", nargs="*", help="names of queues (default: the handler's default queue)")
    worker.add_argument("--app", help="modules to import before the first job, such as shop.models (BACKGROUNDED_APP)")
    worker.add_argument("--url", help="the engine, such as sqlite:///jobs.db (BACKGROUNDED_URL)")
    worker.add_argument("--handler", default=DEFAULT, help="the alias of the configuration (default: %(default)s)")
    worker.add_argument("--print", action="store_true", dest="show", help="show the engine's command and do not run it")
    worker.set_defaults(run=_worker)
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


def _worker(parsed: argparse.Namespace) -> None:
    """Give this process to the engine's own worker, in the environment and directory that it has."""
    for variable, value in (("BACKGROUNDED_APP", parsed.app), ("BACKGROUNDED_URL", parsed.url)):
        if value is not None:
            os.environ[variable] = value
    sys.path.insert(0, str(Path.cwd()))  # where the modules of BACKGROUNDED_APP are; a script does not have it
    load_app()
    configuration = configuration_of(parsed.handler)
    handler: Any = configuration.handler
    if Feature.WORKER not in handler.features:
        raise ConfigurationError(
            f"Handler {configuration.kind!r} has no worker. Name the engine: --url sqlite:///jobs.db, or --app with a "
            "module that calls backgrounded.configure()."
        )
    command = handler.worker_command(parsed.queues)
    if parsed.show:
        print(shlex.join(command))
        return
    scripts = str(Path(sys.executable).parent)  # of this interpreter, where the engine's command is, too
    os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", "")])
    sys.stdout.flush()
    os.execvp(command[0], command)


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
