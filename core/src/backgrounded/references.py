"""Which names exist, what stands behind them, and what of it may be called?

A class travels as "shop.models:User", a module as "shop.reports". Names are looked up, never walked: in the module's
and the class's own dictionaries, so that no property, no `__getattr__` and no descriptor runs, and what is found must
say itself that it was defined there. A message causes an import only inside an allowed package.

`Names.method` is the one place that admits a method, for the call and for the worker. A method may be called if it is
public, a plain function, class method or static method in the body of a class that has opted in (by the `Backgrounded`
mixin, by `@backgroundable`) or that stands in an allowed package.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any, Final, Literal, Protocol, TypeGuard, cast, runtime_checkable

from .calls import NO_OPTIONS, Options
from .errors import (
    BadArguments,
    CallError,
    ConfigurationError,
    EncodeError,
    NotAllowed,
    Refused,
    TargetNotFound,
    UnknownMethod,
)

OPT_IN: Final = "__backgrounded__"
"""The attribute under which `@backgroundable` leaves an `OptIn` on a class or a function."""

MIXIN: Final = "__backgrounded_mixin__"
"""The attribute that marks the mixin and what `install()` has treated: its subclasses have opted in too."""

Kind = Literal["instance", "class", "static", "function"]


@dataclass(frozen=True)
class OptIn:
    """What `@backgroundable` says of a class or function: its default options, and inherited methods it opts in."""

    options: Options = NO_OPTIONS
    inherit: frozenset[str] = frozenset()


class Declared:
    """What `@backgroundable` leaves in a class body in place of a method: the method itself, and default options."""

    def __init__(self, raw: Any, options: Options) -> None:
        self.raw = raw
        self.options = options


@dataclass(frozen=True)
class Method:
    """A method that may be called: all about it that does not change from call to call.

    `kind` says what it is called on; `name` is the readable whole, "shop.models.User.do_stuff"; `signature` is that of
    the caller, and `owner_word` what the method calls its object ("self"), where a keyword of that name would collide;
    `declared` are the options of its class and of the method itself.
    """

    name: str
    kind: Kind
    function: Callable[..., Any]
    signature: inspect.Signature
    owner_word: str | None = None
    declared: Options = NO_OPTIONS

    def check_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise BadArguments unless they fit the signature."""
        try:
            if self.owner_word in kwargs:
                raise TypeError(f"got multiple values for argument {self.owner_word!r}")
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise BadArguments(f"{self.name}{self.signature}: {error}") from None


@runtime_checkable
class Locator(Protocol):
    """Names objects of some kind and finds them again in the worker.

    `refer` returns a key for an object it knows (anything that can travel), else None. `find` returns the object for a
    key; it raises TargetGone when the object does not exist any more, and what else it raises counts as "cannot be
    reached now". `name` travels with the key.
    """

    name: str

    def refer(self, obj: Any) -> Any: ...

    def find(self, key: Any) -> Any: ...


@dataclass
class Names:
    """What this process can name, find and call: its allow-list, services and locators."""

    allow: frozenset[str] = frozenset()
    services: dict[str, Any] = field(default_factory=dict)
    locators: dict[str, Locator] = field(default_factory=dict)
    _methods: weakref.WeakKeyDictionary[Any, dict[str, tuple[Any, Method]]] = field(
        default_factory=weakref.WeakKeyDictionary, repr=False
    )

    def copy(self, allow: frozenset[str] | None = None) -> Names:
        """The same names, apart from these from now on."""
        return Names(self.allow if allow is None else allow, dict(self.services), dict(self.locators))

    # -- what is allowed

    def allows(self, dotted: str) -> bool:
        """Whether `dotted`, a module or something in it, stands in an allowed package, on the dotted boundary."""
        return any(dotted == entry or dotted.startswith(entry + ".") for entry in self.allow)

    def admits(self, cls: type) -> bool:
        """Whether a class may be named by a wire: it has opted in or stands in an allowed package."""
        return has_opted_in(cls) or self.allows(f"{cls.__module__}.{cls.__qualname__}")

    def _may_import(self, module: str) -> bool:
        return self.allows(module) or any(entry.startswith(module + ".") for entry in self.allow)

    # -- names to things

    def find_module(self, name: str) -> ModuleType:
        """The module of this name: a loaded one, or one that may be imported because it is in an allowed package.

        Raises TargetNotFound.
        """
        _check_name(name)
        if "__main__" in name.split("."):
            raise TargetNotFound("A program itself is no module that a worker looks into.")
        module = sys.modules.get(name)
        if isinstance(module, ModuleType):
            return module
        if not self._may_import(name):
            top = name.partition(".")[0]
            raise TargetNotFound(
                f"The module {name} is not loaded in this worker. Set BACKGROUNDED_APP={name} (modules to import "
                f"before the first job, comma-separated), or allow its package: BACKGROUNDED_ALLOW={top}"
            )
        try:
            return importlib.import_module(name)
        except (Exception, SystemExit) as error:  # a script that ends its process must not end the worker
            raise TargetNotFound(f"The module {name} could not be imported: {type(error).__name__}") from error

    def find_class(self, name: str) -> type:
        """The class behind "shop.models:User". Raises TargetNotFound; says nothing about admission."""
        module_name, qualname = split_name(name)
        found: Any = self.find_module(module_name)
        path: list[str] = []
        for part in qualname.split("."):
            path.append(part)
            found = vars(found).get(part)
            if not is_class(found) or not _is_defined(found, module_name, ".".join(path)):
                raise TargetNotFound(f"There is no class {name} in this worker.")
        return cast(type, found)

    def find_admitted_class(self, name: str) -> type:
        """The class behind a name, if it may be named by a wire. Raises TargetNotFound or Refused."""
        cls = self.find_class(name)
        if not self.admits(cls):
            raise Refused(f"The class {name} has not opted in and is not in an allowed package.")
        return cls

    def find_function(self, name: str) -> Callable[..., Any]:
        """The function behind "shop.jobs:send", if it may be called. Raises TargetNotFound or Refused."""
        module_name, function_name = split_name(name)
        return self.admitted(self.find_module(module_name), function_name).function

    # -- methods

    def method(self, owner: type | ModuleType, name: str) -> Method:
        """The method `name` of a class, or the function of a module, if it may be called.

        Raises UnknownMethod, NotAllowed, or CallError for what can be called but not in the background.
        """
        holder, raw = _lookup(owner, name)
        known = self._methods.get(owner)
        if known is not None and (entry := known.get(name)) is not None and entry[0] is raw:
            return entry[1]
        method = self._admit(owner, holder, name, raw)
        self._methods.setdefault(owner, {})[name] = (raw, method)
        return method

    def admitted(self, owner: type | ModuleType, name: str) -> Method:
        """`method`, with the errors of a worker: TargetNotFound and Refused, which tell a stranger nothing more."""
        try:
            return self.method(owner, name)
        except UnknownMethod:
            raise TargetNotFound(f"{dotted_name(owner)} has no public method of that name in this worker.") from None
        except CallError as error:
            raise Refused(f"{dotted_name(owner)}.{name} may not be called: {error.code}.") from error

    def callable_names(self, owner: type | ModuleType) -> list[str]:
        """The names of all methods of a class, or functions of a module, that may be called."""
        return sorted(name for name in set(public_functions(owner)) if self._is_callable(owner, name))

    def _is_callable(self, owner: type | ModuleType, name: str) -> bool:
        try:
            self.method(owner, name)
        except CallError:
            return False
        return True

    def _admit(self, owner: type | ModuleType, holder: type | ModuleType, name: str, raw: Any) -> Method:
        full = f"{dotted_name(owner)}.{name}"
        options = NO_OPTIONS
        opted_in = False
        if isinstance(raw, Declared):
            raw, options, opted_in = raw.raw, raw.options, True
        kind, function = _unwrap(holder, raw)
        if isinstance(function, Declared):
            function, options, opted_in = function.raw, function.options, True
        if not isinstance(function, FunctionType):
            raise UnknownMethod(f"{full} is a {type(raw).__name__}, not a method or plain function.")
        if isinstance(holder, ModuleType):
            self._admit_function(holder, full, name, function)
            options = opt_in_of(function).options
        else:
            self._admit_method(owner, holder, full, name, function, opted_in)
            options = options.over(class_options(owner))
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise CallError(f"{full} is a generator: in the background nobody would iterate over it.")
        signature, owner_word = _signature(kind, function)
        return Method(full, kind, function, signature, owner_word, options)

    def _admit_method(
        self, owner: Any, holder: type, full: str, name: str, function: FunctionType, opted_in: bool
    ) -> None:
        if function.__name__ == "<lambda>":
            raise NotAllowed(full, "it is a lambda: give it a name with def.")
        if full in self.allow or self._is_named(holder, name) or _inherits(owner, name):
            return
        if not (opted_in or has_opted_in(holder) or self.allows(dotted_name(holder))):
            raise NotAllowed(
                full,
                f"{dotted_name(holder)} has not opted in. Give it the Backgrounded mixin or @backgroundable, name the "
                f"method with @backgroundable(inherit=[{name!r}]), or configure(..., allow=[{holder.__module__!r}]).",
            )
        if function.__module__ != holder.__module__ and not self.allows(function.__module__):
            raise NotAllowed(
                full,
                f"its function was defined in {function.__module__}, not in {holder.__module__}. If a decorator made "
                f"it, let the decorator use functools.wraps.",
            )

    def _is_named(self, holder: type, name: str) -> bool:
        """Whether an entry names this very method, also by a module that only passes its class on, as
        "django.db.models.Model.save" does."""
        classes = (entry.rpartition(".")[0] for entry in self.allow if entry.endswith("." + name))
        return any(dotted == dotted_name(holder) or _passed_on(dotted) is holder for dotted in classes)

    def _admit_function(self, module: ModuleType, full: str, name: str, function: FunctionType) -> None:
        if "<" in function.__qualname__:
            raise NotAllowed(full, "it is local or a lambda: define it with def at the top level of the module.")
        if not _is_defined(function, module.__name__, name):
            raise NotAllowed(
                full,
                f"it was defined as {function.__module__}.{function.__qualname__}: call it by that name. If a "
                f"decorator made it, let the decorator use functools.wraps.",
            )
        if not (OPT_IN in vars(function) or self.allows(full)):
            raise NotAllowed(
                full,
                f"the function has not opted in. Decorate it with @backgroundable, or configure(..., "
                f"allow=[{module.__name__!r}]).",
            )


def _lookup(owner: type | ModuleType, name: str) -> tuple[type | ModuleType, Any]:
    """Who holds the name, and what stands there, without evaluating it. Raises UnknownMethod."""
    if isinstance(name, str) and not name.startswith("_"):
        for holder in _holders(owner):
            if name in vars(holder):
                return holder, vars(holder)[name]
    raise UnknownMethod(_unknown(owner, name))


def _unknown(owner: Any, name: str) -> str:
    if name.startswith("_"):
        return f"{dotted_name(owner)}.{name} is private: only public methods run in the background."
    near = difflib.get_close_matches(name, sorted(public_functions(owner)), n=1)
    return f"{dotted_name(owner)} has no method {name!r}." + (f" Did you mean {near[0]!r}?" if near else "")


def _holders(owner: Any) -> Iterable[Any]:
    return owner.__mro__ if is_class(owner) else (owner,)


def public_functions(owner: type | ModuleType) -> Iterator[str]:
    """The public names under which functions and methods stand in a class, its bases, or a module."""
    for holder in _holders(owner):
        for name, raw in vars(holder).items():
            if not name.startswith("_") and isinstance(raw, (FunctionType, classmethod, staticmethod, Declared)):
                yield name


def _unwrap(holder: type | ModuleType, raw: Any) -> tuple[Kind, Any]:
    if isinstance(holder, ModuleType):
        return "function", raw
    if isinstance(raw, classmethod):
        return "class", raw.__func__
    if isinstance(raw, staticmethod):
        return "static", raw.__func__
    return "instance", raw


def _signature(kind: Kind, function: FunctionType) -> tuple[inspect.Signature, str | None]:
    """The signature without the object or class that the method is called on, and the word for that, if it has one."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if kind not in ("instance", "class") or not parameters or parameters[0].kind not in _POSITIONAL:
        return signature, None
    word = parameters[0].name if parameters[0].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD else None
    return signature.replace(parameters=parameters[1:]), word


_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def has_opted_in(cls: type) -> bool:
    """Whether a class opted in its own methods: by @backgroundable on it, or by the mixin on it or on a base."""
    return OPT_IN in vars(cls) or any(MIXIN in vars(base) for base in cls.__mro__)


def opt_in_of(thing: Any) -> OptIn:
    """What `@backgroundable` left on a class or function itself, not on its bases."""
    found = vars(thing).get(OPT_IN)
    return found if isinstance(found, OptIn) else OptIn()


def class_options(owner: Any) -> Options:
    """The default options of a class: what it and its bases declare, the nearest first."""
    options = NO_OPTIONS
    for holder in reversed(owner.__mro__):
        options = opt_in_of(holder).options.over(options)
    return options


def _inherits(owner: Any, name: str) -> bool:
    return any(name in opt_in_of(holder).inherit for holder in owner.__mro__)


def _is_defined(thing: Any, module: str, qualname: str) -> bool:
    return bool(thing.__module__ == module and thing.__qualname__ == qualname)


def is_class(thing: Any) -> TypeGuard[type]:
    """Whether a thing is a class. `isinstance` would ask the thing itself, and `__class__` may be a property."""
    return issubclass(type(thing), type)


def owner_of(thing: Any) -> type | ModuleType:
    """Whose methods are called on a thing: a class's or module's own, else those of its class. Evaluates nothing."""
    return thing if issubclass(type(thing), (type, ModuleType)) else type(thing)


def dotted_name(owner: type | ModuleType) -> str:
    """ "shop.models.User" for a class, "shop.reports" for a module."""
    return owner.__name__ if isinstance(owner, ModuleType) else f"{owner.__module__}.{owner.__qualname__}"


def name_of(thing: Any, path: str) -> str:
    """The name under which a worker finds a class or function again: "shop.models:User". Raises EncodeError."""
    module, qualname = thing.__module__, thing.__qualname__
    name = f"{module}:{qualname}"
    if "<" in qualname:
        raise EncodeError(path, f"{name} is local or a lambda: no worker can find it. Move it to a module's top level.")
    if module == "__main__":
        raise EncodeError(path, f"{name} is in the program itself: no worker can import it. Move it to a module.")
    if _find_loaded(module, qualname) is not thing:
        raise EncodeError(path, f"{name} names something else than this object: no worker could find it by its name.")
    return name


def _find_loaded(module: str, qualname: str) -> Any:
    """What stands under a name in a loaded module, by dictionaries only; None if nothing does."""
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = vars(found).get(part) if isinstance(found, (ModuleType, type)) else None
    return _unwrap(object, found)[1] if isinstance(found, (classmethod, staticmethod)) else found


def _passed_on(dotted: str) -> Any:
    """What stands under a dotted name in a loaded module, wherever it was defined; None if nothing does."""
    parts = dotted.split(".")
    cuts = (cut for cut in range(len(parts) - 1, 0, -1) if ".".join(parts[:cut]) in sys.modules)
    cut = next(cuts, 0)
    return _find_loaded(".".join(parts[:cut]), ".".join(parts[cut:])) if cut else None


def check_allow(entries: Iterable[str]) -> frozenset[str]:
    """An allow-list as given, checked. Raises ConfigurationError."""
    if isinstance(entries, str) and entries != "*":
        raise ConfigurationError(f"allow must be a list of packages, such as allow=[{entries!r}], not one string.")
    allow = frozenset(entries)
    for entry in allow:
        if entry == "*":
            raise ConfigurationError(
                'allow="*" lets a message call anything importable. It needs signed messages (secret_keys), which '
                "this release does not have. Name your packages instead."
            )
        if not isinstance(entry, str) or not all(part.isidentifier() for part in entry.split(".")):
            raise ConfigurationError(f"allow: {entry!r} is not a dotted name such as 'shop' or 'shop.models.User'.")
    return allow


def split_name(name: str) -> tuple[str, str]:
    """ "shop.models:User" as module and qualified name. Raises TargetNotFound when it is neither."""
    module, colon, qualname = name.partition(":")
    if not colon:
        raise TargetNotFound("A name in the wire has no module.")
    _check_name(module)
    _check_name(qualname)
    return module, qualname


def _check_name(dotted: str) -> None:
    if not all(part.isidentifier() for part in dotted.split(".")):
        raise TargetNotFound("A name in the wire is not a dotted name.")
