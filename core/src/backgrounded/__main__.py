"""What can be done from a shell? `python -m backgrounded --help`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ._configuration import DEFAULT, HANDLERS, Configuration, configuration_of, entry_points, load_handler, runtime
from ._runtime import load_app
from .errors import BackgroundedError, ConfigurationError
from .handler import OPTION_FEATURES, Feature, kept_ids

INTERRUPTED: Final = 130
"""What a shell expects of a command that Ctrl-C has ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, or 1 when it failed with a reason on standard error."""
    parsed = _parser().parse_args(arguments)
    try:
        code = int(parsed.run(parsed) or 0)
        sys.stdout.flush()
        return code
    except BackgroundedError as error:
        print(f"backgrounded: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever reads has read enough, and Python is not to complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="backgrounded", description="Run any method of any object in the background.")
    commands = parser.add_subparsers(title="commands", required=True)
    demo = commands.add_parser("demo", help="run a method of a tiny application in another process, and show it")
    demo.add_argument("--handler", default="sqlite", help="the engine to show it on (default: sqlite)")
    demo.set_defaults(run=_demo)
    worker = _on_a_handler(commands, "worker", _worker, "become the worker of the configured engine, for these queues")
    worker.add_argument("queues", nargs="*", help="names of queues (default: the handler's default queue)")
    worker.add_argument("--print", action="store_true", dest="show", help="show the engine's command and do not run it")
    kept = _on_a_handler(commands, "kept", _kept, "list the jobs that were set aside, and why")
    kept.add_argument("--json", action="store_true", help="for machines")
    replay = _on_a_handler(
        commands, "replay", _replay, "run jobs that were set aside again, as if they were called now"
    )
    forget = _on_a_handler(commands, "forget", _forget, "drop jobs that were set aside")
    for command in (replay, forget):
        command.add_argument("ids", nargs="*", metavar="ID", help="ids of kept jobs")
        command.add_argument("--all", action="store_true", help="all that are kept now")
    doctor = _on_a_handler(commands, "doctor", _doctor, "say what is promised, and what makes it untrue here")
    doctor.add_argument("--json", action="store_true", help="for machines")
    handlers = commands.add_parser("handlers", help="list the installed handlers and the options that they keep")
    handlers.add_argument("--json", action="store_true", help="for machines")
    handlers.set_defaults(run=_handlers)
    adapter = commands.add_parser(
        "new-adapter", help="write a distribution with a handler for another engine, to begin with"
    )
    adapter.add_argument("name", help="what the engine is called in configure(NAME), such as river")
    adapter.set_defaults(run=_new_adapter)
    manager = runtime().hooks.manager
    if manager is not None:
        manager.hook.backgrounded_commands(commands=commands)
    return parser


def _demo(parsed: argparse.Namespace) -> int:
    from ._demo import demo  # here, not above: it is of no use to the other commands

    return demo(parsed.handler)


def _new_adapter(parsed: argparse.Namespace) -> None:
    from . import __version__
    from ._new_adapter import new_adapter  # here, not above: as _demo

    place = new_adapter(parsed.name, __version__, Path.cwd())
    print(
        f"{place.name}/ is an adapter that works, on an engine of its own: search it for REPLACE. To test it as it is:"
    )
    print(f"  cd {place.name} && pip install -e . pytest && pytest")


def _on_a_handler(commands: Any, name: str, run: Callable[[argparse.Namespace], Any], help: str) -> Any:
    """A command that works on a configured handler, and how to say which."""
    command = commands.add_parser(name, help=help, description=help)
    command.add_argument("--app", help="modules to import first, such as shop.models (BACKGROUNDED_APP)")
    command.add_argument("--url", help="the engine, such as sqlite:///jobs.db (BACKGROUNDED_URL)")
    command.add_argument("--handler", default=DEFAULT, help="the alias of the configuration (default: %(default)s)")
    command.set_defaults(run=run)
    return command


def _configured(parsed: argparse.Namespace) -> Configuration:
    """What the command line and the environment mean."""
    for variable, value in (("BACKGROUNDED_APP", parsed.app), ("BACKGROUNDED_URL", parsed.url)):
        if value is not None:
            os.environ[variable] = value
    sys.path.insert(0, str(Path.cwd()))  # where the modules of BACKGROUNDED_APP are; a script does not have it
    load_app()
    return configuration_of(parsed.handler)


def _handler_of(parsed: argparse.Namespace, feature: Feature) -> Any:
    """The handler that is meant. Raises ConfigurationError without the feature."""
    configuration = _configured(parsed)
    if feature not in configuration.handler.features:
        raise ConfigurationError(
            f"Handler {configuration.kind!r} has no {feature}. Name the engine: --url sqlite:///jobs.db, or --app with "
            "a module that calls backgrounded.configure()."
        )
    return configuration.handler


def _doctor(parsed: argparse.Namespace) -> int:
    from ._doctor import doctor  # here, not above: as the demo

    return doctor(_configured(parsed), as_json=parsed.json)


def _worker(parsed: argparse.Namespace) -> None:
    """Give this process to the engine's own worker, in the environment and directory that it has."""
    if "" in parsed.queues:
        raise ConfigurationError("A queue has a name, and one of these has none: is a variable of the shell not set?")
    command = _handler_of(parsed, Feature.WORKER).worker_command(parsed.queues)
    if parsed.show:
        print(shlex.join(command))
        return
    scripts = str(Path(sys.executable).parent)  # of this interpreter, where the engine's command is, too
    os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", "")])
    sys.stdout.flush()
    os.execvp(command[0], command)


def _kept(parsed: argparse.Namespace) -> None:
    with _asked(parsed) as handler:
        for job in handler.kept():
            shown = {"id": job.id, "name": job.name, "code": job.code, "reason": job.reason}
            print(json.dumps(shown) if parsed.json else f"{job.id}  {job.name}  {job.code}: {job.reason}")


def _replay(parsed: argparse.Namespace) -> None:
    with _asked(parsed) as handler:
        _decide(parsed, handler, handler.replay, "runs again")


def _forget(parsed: argparse.Namespace) -> None:
    with _asked(parsed) as handler:
        _decide(parsed, handler, handler.forget, "is dropped")


def _decide(parsed: argparse.Namespace, handler: Any, decide: Callable[[str], None], said: str) -> None:
    for id in _ids_of(parsed, handler):
        try:
            decide(id)
        except ConfigurationError:
            if not parsed.all:
                raise
            print(f"{id} is not kept any more")  # somebody else was quicker
        else:
            print(f"{id} {said}")


@contextlib.contextmanager
def _asked(parsed: argparse.Namespace) -> Iterator[Any]:
    """The handler that is meant, of which kept jobs are asked. Its engine's own errors become one of ours."""
    handler = _handler_of(parsed, Feature.KEPT)
    try:
        yield handler
    except (BackgroundedError, BrokenPipeError):  # the latter is of what we print
        raise
    except Exception as error:
        raise BackgroundedError(f"The engine cannot be asked: {type(error).__name__}: {error}") from error


def _ids_of(parsed: argparse.Namespace, handler: Any) -> list[str]:
    if bool(parsed.ids) is parsed.all:
        raise ConfigurationError("Name the jobs by their ids, as `backgrounded kept` lists them, or say --all.")
    return list(kept_ids(handler)) if parsed.all else list(parsed.ids)


def _features_of(handler: Any) -> Iterable[str]:
    """What a class of handlers keeps; where that depends on the place, what it keeps where it goes by default."""
    found: Any = handler.features
    return handler().features if isinstance(found, property) else found  # type: ignore[no-any-return]


def _handlers(parsed: argparse.Namespace) -> int:
    found = {entry.name: sorted(_features_of(load_handler(entry.name))) for entry in entry_points(HANDLERS)}
    if parsed.json:
        print(json.dumps(found, indent=2, sort_keys=True))
        return 0
    width = max(map(len, found))
    for name, features in sorted(found.items()):
        kept = [option for option, feature in OPTION_FEATURES.items() if feature in features]
        print(f"{name:{width}} keeps {', '.join(kept)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
