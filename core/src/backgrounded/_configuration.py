"""What is configured in this process: which handlers, what may be called, how values travel, who listens?

A `Runtime` is never changed, only replaced: by `configure()` for the process, by `using()` for a scope. What
applications register (services, converters, locators, plugins) belongs to it too.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

from .calls import NO_OPTIONS, OPTION_NAMES, Keeper, Options, Retry
from .codec import Codec, Converter, Limits
from .errors import ConfigurationError, HandlerNotFound, UnsupportedOption
from .handler import OPTION_FEATURES, PROTOCOL, Feature, Handler, kept_options, says_nothing, take_from_url
from .references import Locator, Names, check_allow

logger = logging.getLogger("backgrounded")

DEFAULT: Final = "default"
HANDLERS: Final = "backgrounded.handlers"
PLUGINS: Final = "backgrounded.plugins"


@dataclass(frozen=True)
class Configuration:
    """One configured handler: its alias, its kind (what it was asked for by), and what it was told to ignore."""

    alias: str
    kind: str
    handler: Handler
    ignore: frozenset[str] = frozenset()
    allow: frozenset[str] = frozenset()
    limits: Limits | None = None

    def accept(self, options: Options) -> Options:
        """The options as the handler gets them. Raises UnsupportedOption for what it does not keep."""
        if options is NO_OPTIONS:
            return options
        refused = [option for option in options.given() if not self._keeps(option, options)]
        for option in refused:
            self._refuse_unless_ignored(option)
        return options.without(refused) if refused else options

    def _keeps(self, option: str, options: Options) -> bool:
        feature = OPTION_FEATURES.get(option)
        if feature is None:
            return True
        features = self.handler.features
        if option == "retry":
            policy = cast(Retry, options.retry)
            return policy.max == 0 or (feature in features and (not policy.waits or Feature.RETRY_WAIT in features))
        return feature in features or says_nothing(option, options)

    def _refuse_unless_ignored(self, option: str) -> None:
        if option not in self.ignore:
            partly = option == "retry" and Feature.RETRY in self.handler.features
            reason = "it retries at once, without waits" if partly else ""
            raise UnsupportedOption(option, self.kind, kept_options(self.handler.features), reason)
        _log_once(f"Handler {self.kind!r} ignores the option {option!r}, as it was told to.")


@dataclass(frozen=True)
class Runtime:
    """What is configured: handlers by alias, the names that may be called, the codec, the plugins."""

    configurations: Mapping[str, Configuration] = field(default_factory=dict)
    codec: Codec = field(default_factory=lambda: Codec(Names()))
    plugins: tuple[Any, ...] = ()
    _hooks: list[Hooks] = field(default_factory=list, repr=False)

    @property
    def names(self) -> Names:
        return self.codec.names

    @property
    def hooks(self) -> Hooks:
        """The hooks that somebody implements; plugins are loaded at the first use."""
        if not self._hooks:
            self._hooks.append(_load_hooks(self))
        return self._hooks[0]

    def with_configuration(self, configuration: Configuration) -> Runtime:
        """A copy in which this configuration stands under its alias. Of several limits the last configured hold."""
        others = {alias: item for alias, item in self.configurations.items() if alias != configuration.alias}
        configurations = {**others, configuration.alias: configuration}
        allow = frozenset().union(_allow_from_environment(), *(item.allow for item in configurations.values()))
        limits = [item.limits for item in configurations.values() if item.limits is not None]
        names = self.names.copy(allow=allow)
        codec = self.codec.copy(names=names, limits=limits[-1] if limits else Limits())
        return replace(self, configurations=configurations, codec=codec, _hooks=[])


def _fresh() -> Runtime:
    return Runtime(codec=Codec(Names(allow=_allow_from_environment())))


def _allow_from_environment() -> frozenset[str]:
    if listed("BACKGROUNDED_SECRET_KEYS"):
        raise ConfigurationError(_NO_SIGNING.format("BACKGROUNDED_SECRET_KEYS"))
    return check_allow(listed("BACKGROUNDED_ALLOW"))


_NO_SIGNING: Final = "{}: this release does not sign messages yet, and will not pretend to. Leave it out."


def listed(variable: str) -> list[str]:
    return [item.strip() for item in os.environ.get(variable, "").split(",") if item.strip()]


_process: Runtime | None = None
_scoped: ContextVar[Runtime | None] = ContextVar("backgrounded_runtime", default=None)
_lock = threading.RLock()
_said: set[str] = set()


def runtime() -> Runtime:
    """The state that holds here: of the innermost `using()`, else of the process."""
    global _process
    scoped = _scoped.get()
    if scoped is not None:
        return scoped
    if _process is None:
        with _lock:
            _process = _process or _fresh()
    return _process


def _replace(change: Callable[[Runtime], Runtime]) -> Runtime:
    """Replace the state that holds here."""
    global _process
    with _lock:
        changed = change(runtime())
        if _scoped.get() is not None:
            _scoped.set(changed)
        else:
            _process = changed
    return changed


def configure(
    handler: str | type | Handler,
    *,
    name: str = DEFAULT,
    url: str | None = None,
    allow: Iterable[str] = (),
    secret_keys: Iterable[str | bytes] = (),
    ignore: Iterable[str] = (),
    limits: Limits | None = None,
    **rest: Any,
) -> Handler:
    """Configure the handler `name`, by the entry-point name of an installed handler or by an object; return it.

    `url` and `rest` go to the handler. `allow` names packages (or classes, or methods) whose public functions may be
    called without having opted in; it holds for the whole process. `ignore` names options that the handler may drop
    although it does not keep them. `limits` bound the size of what travels. Replaces the named configuration whole and
    checks it at once; connections are made at the first use.

    Raises ConfigurationError.
    """
    configuration = _build(handler, name, url, allow, secret_keys, ignore, limits, rest)
    _replace(lambda state: state.with_configuration(configuration))
    return configuration.handler


@contextlib.contextmanager
def using(
    handler: str | type | Handler,
    *,
    name: str = DEFAULT,
    url: str | None = None,
    allow: Iterable[str] = (),
    secret_keys: Iterable[str | bytes] = (),
    ignore: Iterable[str] = (),
    limits: Limits | None = None,
    **rest: Any,
) -> Iterator[Handler]:
    """`configure()` for a scope: this thread or task, and what it awaits. Puts the old state back, on errors too.

    What is registered inside (services, converters, locators, plugins) is gone afterwards as well. Other threads do
    not see it.
    """
    configuration = _build(handler, name, url, allow, secret_keys, ignore, limits, rest)
    token = _scoped.set(runtime().with_configuration(configuration))
    try:
        yield configuration.handler
    finally:
        _scoped.reset(token)


def reset() -> None:
    """A fresh state: nothing configured, nothing registered. The environment is read again at the next use."""
    global _process
    with _lock:
        _process = None
        _scoped.set(None)
        _said.clear()


def get_handler(name: str = DEFAULT) -> Handler:
    """The configured handler of this name. Raises ConfigurationError when there is none."""
    return configuration_of(name).handler


def keeper(alias: str | None = None) -> Keeper:
    """What the handler of an alias is called in messages, and the options it keeps; configures nothing."""
    found = runtime().configurations.get(alias or DEFAULT)
    return (DEFAULT, OPTION_NAMES) if found is None else (found.kind, kept_options(found.handler.features))


def configured(alias: str) -> Configuration | None:
    """The configuration of an alias, if there is one; the default one may come from BACKGROUNDED_URL."""
    found = runtime().configurations.get(alias)
    if found is None and alias == DEFAULT and os.environ.get("BACKGROUNDED_URL"):
        return _default_of_process(os.environ["BACKGROUNDED_URL"])
    return found


def configuration_of(alias: str) -> Configuration:
    """The configuration of an alias; without any, the default one is `inline`. Raises ConfigurationError."""
    found = configured(alias)
    if found is not None:
        return found
    if alias != DEFAULT:
        known = ", ".join(sorted(runtime().configurations)) or "none"
        raise ConfigurationError(f"No handler is configured under the name {alias!r}. Configured: {known}.")
    _log_once(
        "backgrounded is not configured: methods run inline, in this process, before the call returns. "
        'Say backgrounded.configure("inline") to have it so, or set BACKGROUNDED_URL.'
    )
    return _default_of_process("inline://")


def _default_of_process(url: str) -> Configuration:
    """What nobody configured, made once for the whole process, whichever scope or thread asks for it first."""
    global _process
    with _lock:
        state = _process or _fresh()
        if DEFAULT not in state.configurations:
            kind, rest = parse_url(url)
            configuration = _build(kind, DEFAULT, rest.pop("url", None), (), (), (), None, rest)
            _process = state = state.with_configuration(configuration)
        return state.configurations[DEFAULT]


def parse_url(url: str) -> tuple[str, dict[str, Any]]:
    """ "rq+redis://host:6379/0?queue=custom" as handler name and arguments: ("rq", {"url": ..., "queue": "custom"}).

    The part before `+` (or the whole scheme) names the handler; `queue` is its default queue; the rest of the URL is
    the engine's. Raises ConfigurationError.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or not scheme:
        raise ConfigurationError("BACKGROUNDED_URL is not a URL such as rq+redis://localhost:6379/0 or inline://")
    kind, plus, engine_scheme = scheme.partition("+")
    place, arguments = take_from_url(rest, ("queue",))
    if not plus and place.startswith("/"):  # sqlite:///jobs.db: the engine's own word for a path
        engine_scheme = kind
    engine_url = (f"{engine_scheme}://" if engine_scheme else "") + place
    return kind, arguments | ({"url": engine_url} if engine_url else {})


def _build(
    handler: str | type | Handler,
    name: str,
    url: str | None,
    allow: Iterable[str],
    secret_keys: Iterable[str | bytes],
    ignore: Iterable[str],
    limits: Limits | None,
    rest: Mapping[str, Any],
) -> Configuration:
    if secret_keys:
        raise ConfigurationError(_NO_SIGNING.format("secret_keys"))
    ignored = frozenset((ignore,) if isinstance(ignore, str) else ignore)
    for option in ignored - OPTION_FEATURES.keys():
        raise ConfigurationError(f"ignore: {option!r} is not an option. Options: {', '.join(OPTION_FEATURES)}.")
    kind, made = _make_handler(handler, url, rest)
    check_handler(made, kind)
    return Configuration(name, kind, made, ignored, check_allow(allow), limits)


def _make_handler(handler: str | type | Handler, url: str | None, rest: Mapping[str, Any]) -> tuple[str, Handler]:
    arguments = dict(rest) if url is None else {"url": url, **rest}
    if isinstance(handler, str):
        kind, factory = handler, load_handler(handler)
    elif isinstance(handler, type):
        kind, factory = handler.__name__, handler
    else:
        if arguments:
            raise ConfigurationError(
                f"A handler given as an object is complete: {', '.join(arguments)} would have no effect."
            )
        return getattr(handler, "name", type(handler).__name__), handler
    if not callable(getattr(factory, "enqueue", None)):
        raise ConfigurationError(_NO_HANDLER.format(kind))
    signature = inspect.signature(factory)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ConfigurationError(f"Handler {kind!r}: {error}. It takes {signature}.") from None
    return kind, factory(**arguments)


_NO_HANDLER: Final = "{!r} is not a handler: it has no method enqueue(call)."


def load_handler(name: str) -> Any:
    """The handler class under an entry-point name; no other adapter is imported. Raises HandlerNotFound."""
    found = {entry.name: entry for entry in entry_points(HANDLERS)}
    if name not in found:
        raise HandlerNotFound(name, list(found))
    try:
        return found[name].load()
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"Handler {name!r} is installed but cannot be imported: {problem}") from error


def entry_points(group: str) -> Iterable[Any]:
    """The installed entry points of a group. They are read once: that takes milliseconds, and tests configure often."""
    return _entry_points(group, tuple(sys.path))


@functools.cache
def read_installed() -> None:
    """Read what is installed, once in a process.

    Before a time limit may strike: in the middle of it, `importlib_metadata` stays half imported, and nothing that this
    process does afterwards finds a plugin or a handler.
    """
    entry_points(PLUGINS)


@functools.lru_cache(maxsize=8)
def _entry_points(group: str, path: tuple[str, ...]) -> tuple[Any, ...]:
    import importlib_metadata  # here, not above: it costs more than the rest of this package together

    return tuple(importlib_metadata.entry_points(group=group))


_METHODS: Final[Mapping[Feature, tuple[str, ...]]] = {
    Feature.BULK: ("enqueue_many",),
    Feature.STATE: ("state",),
    Feature.RESULTS: ("result",),
    Feature.CANCEL: ("cancel",),
    Feature.KEPT: ("kept", "replay", "forget"),
    Feature.WORKER: ("worker_command",),
}


def check_handler(handler: Any, kind: str) -> None:
    """Refuse what is not a handler, speaks another protocol, or does not have what its features promise."""
    protocol = getattr(type(handler), "protocol", None)
    if not callable(getattr(handler, "enqueue", None)):
        raise ConfigurationError(_NO_HANDLER.format(kind))
    if protocol != PROTOCOL or isinstance(protocol, bool):
        raise ConfigurationError(
            f"Handler {kind!r} speaks protocol {protocol!r}, this core speaks {PROTOCOL}: "
            f"upgrade the {'core' if isinstance(protocol, int) and protocol > PROTOCOL else 'adapter'}."
        )
    features = getattr(handler, "features", None)
    if not isinstance(features, (frozenset, set)) or not all(isinstance(item, Feature) for item in features):
        raise ConfigurationError(f"Handler {kind!r}: features must be a frozenset of backgrounded.handler.Feature.")
    missing = [method for feature in features for method in _METHODS.get(feature, ()) if not hasattr(handler, method)]
    if missing:
        raise ConfigurationError(f"Handler {kind!r} declares features but has no {', '.join(sorted(missing))}.")


def _log_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.warning(message)


# -- what can be registered


def register_service(name: str, obj: Any) -> None:
    """Let an object be found again by name: a client, a gateway, what every process makes for itself.

    Registering another object under the same name replaces it. It does not opt its methods in.
    """
    if not isinstance(name, str) or not name:
        raise ConfigurationError("A service's name must be a string that is not empty.")
    runtime().names.services[name] = obj


def add_converter(
    type: type, encode: Callable[[Any], Any], decode: Callable[[Any], Any], *, tag: str | None = None
) -> None:
    """Let values of exactly this type travel: `encode` gives anything that can travel, `decode` gets that back.

    `tag` names the type in the wire and must stay the same for ever; the default is the type's dotted name. The last
    registration of a tag counts.
    """
    runtime().codec.add(Converter(type, encode, decode, tag or f"{type.__module__}.{type.__qualname__}"))


def add_locator(locator: Locator) -> None:
    """Add a way to name objects and to find them again. The last registration of a name counts."""
    if not isinstance(locator, Locator) or not locator.name:
        raise ConfigurationError(f"{type(locator).__name__} is no Locator: it needs name, refer(obj) and find(key).")
    runtime().names.locators[locator.name] = locator


def load_plugins() -> None:
    """Load now what the first call, or the first job, would load: the installed plugins.

    For workers that fork for each job: what is loaded before the fork need not be loaded again after it.
    """
    runtime().hooks  # noqa: B018  # they are loaded when they are first asked for


def register_plugin(plugin: Any) -> None:
    """Add an object with `@hookimpl` functions. Registering the same object again changes nothing."""
    if plugin not in runtime().plugins:
        _replace(lambda state: replace(state, plugins=(*state.plugins, plugin), _hooks=[]))


# -- hooks


@dataclass(frozen=True)
class Hooks:
    """The hooks that somebody implements, as callables; None where nobody listens."""

    headers: Any = None
    enqueue: Any = None
    not_sent: Any = None
    perform: Any = None
    ended: Any = None
    manager: Any = None


def _load_hooks(state: Runtime) -> Hooks:
    plugins = [*_installed_plugins(), *state.plugins]
    if not plugins:
        return Hooks()
    import pluggy

    from . import hookspecs

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        for plugin in plugins:
            if not manager.is_registered(plugin):
                manager.register(plugin)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        raise ConfigurationError(f"A plugin does not fit the hooks of this release: {error}") from error
    _refuse_rivals(manager)
    for converters in manager.hook.backgrounded_converters():
        for converter in converters:
            state.codec.add(converter)
    for locators in manager.hook.backgrounded_locators():
        for locator in locators:
            state.names.locators[locator.name] = locator
    return Hooks(manager=manager, **{name: _if_heard(manager, name) for name in _HOOKS})


def _installed_plugins() -> Iterator[Any]:
    for entry in entry_points(PLUGINS):
        try:
            yield entry.load()
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            raise ConfigurationError(f"Plugin {entry.name!r} is installed but cannot be imported: {problem}") from error


def _refuse_rivals(manager: Any) -> None:
    """Around hooks are wrappers. Another kind would stand beside the core, and run in its place or as well."""
    for name in ("enqueue", "perform"):
        for found in getattr(manager.hook, f"backgrounded_{name}").get_hookimpls():
            if not (found.wrapper or found.hookwrapper):
                raise ConfigurationError(
                    f"{found.plugin_name}: backgrounded_{name} must be @hookimpl(wrapper=True), with one yield."
                )


_HOOKS: Final = ("headers", "enqueue", "not_sent", "perform", "ended")


def _if_heard(manager: Any, name: str) -> Any:
    hook = getattr(manager.hook, f"backgrounded_{name}")
    return hook if hook.get_hookimpls() else None


def around(hook: Any, core: Callable[..., Any], **arguments: Any) -> Any:
    """Call an around hook with the core as its innermost implementation, for this one call."""
    return hook.call_extra([core], arguments)
