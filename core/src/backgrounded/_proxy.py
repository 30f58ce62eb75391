"""How does `user.backgrounded.do_stuff(1)` become a call?

The mixin's attribute gives a `Proxy` of the object; the proxy's attribute gives a callable; calling it submits. The
other entrances (`background`, `later`, `@backgroundable`, the awaited twins) are spellings of the same three steps.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from itertools import islice
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from . import _runtime
from ._configuration import keeper, runtime
from .calls import NO_OPTIONS, Options, OptionWords
from .errors import BackgroundedError, CallError, ConfigurationError, EnqueueError, NotAllowed, UnknownMethod
from .jobs import Job, MapResult, job_of
from .references import MIXIN, OPT_IN, Declared, OptIn, dotted_name, is_class, owner_of

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack  # every type checker brings it; at run time it is not needed

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
T = TypeVar("T")
C = TypeVar("C", bound=type)

Sender = Callable[..., Any]


def _send(obj: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> Job[Any]:
    return job_of(_runtime.submit(obj, method, args, kwargs, options))


async def _asend(obj: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> Job[Any]:
    """Check and encode here, so that the arguments are copied at the call; hand over in a thread."""
    if _runtime.open_batch() is not None:
        return _send(obj, method, args, kwargs, options)
    import asyncio  # here, not above: it is only needed where a loop is running

    ticket = _runtime.prepare(obj, method, args, kwargs, options)
    await asyncio.to_thread(_runtime.deliver, [ticket])
    return job_of(ticket)


def _options(given: Mapping[str, Any], base: Options | None = None) -> Options:
    return Options.of(given, base=base, keeper=lambda: keeper(given.get("handler"))) if given else base or NO_OPTIONS


class Proxy:
    """`obj.backgrounded`: its attributes are the object's public methods, run in the background.

    Called with options, it gives a proxy with these options. It owns no public name, so it hides none of the object's.
    """

    __slots__ = ("__obj", "__options")
    __obj: Any
    __options: Options
    __send: Sender = staticmethod(_send)

    def __init__(self, obj: Any, options: Options = NO_OPTIONS) -> None:
        object.__setattr__(self, "_Proxy__obj", obj)
        object.__setattr__(self, "_Proxy__options", options)

    def __call__(self, **options: Unpack[OptionWords]) -> Self:
        return type(self)(self.__obj, _options(options, self.__options))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise UnknownMethod(f"{name}: only public methods run in the background.")
        runtime().names.method(owner_of(self.__obj), name)
        return _Bound(self.__obj, name, self.__options, self.__send)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"cannot set {name!r}: a background proxy only calls methods")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.__obj, self.__options)

    def __dir__(self) -> list[str]:
        return runtime().names.callable_names(owner_of(self.__obj))

    def __repr__(self) -> str:
        owner = owner_of(self.__obj)
        return f"<backgrounded proxy of {'' if self.__obj is owner else 'a '}{dotted_name(owner)}>"


class AProxy(Proxy):
    """`obj.abackgrounded`: the same, but the calls are awaited."""

    __slots__ = ()
    _Proxy__send: Sender = staticmethod(_asend)


class _Bound:
    """`obj.backgrounded.do_stuff`: calling it submits the call."""

    __slots__ = ("__name__", "_obj", "_options", "_send")

    def __init__(self, obj: Any, name: str, options: Options, send: Sender) -> None:
        self._obj = obj
        self.__name__ = name
        self._options = options
        self._send = send

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._send(self._obj, self.__name__, args, kwargs, self._options)

    def __repr__(self) -> str:
        return f"<{self.__name__} in the background>"


X = TypeVar("X", bound=Proxy)


class _ProxyAttribute(Generic[X]):
    """The descriptor behind `backgrounded` and `abackgrounded`: a proxy of the instance, or of the class."""

    def __init__(self, proxy: type[X]) -> None:
        self._proxy = proxy

    def __get__(self, obj: Any, owner: type) -> X:
        return self._proxy(owner if obj is None else obj)


class Backgrounded:
    """The mixin that opts a class and its subclasses in: `user.backgrounded.do_stuff()`.

    `backgrounded` gives a proxy of the object (or class) whose method calls return a `Job`; `abackgrounded` one whose
    method calls are awaited.
    """

    __slots__ = ()
    __backgrounded_mixin__ = True
    backgrounded = _ProxyAttribute(Proxy)
    abackgrounded = _ProxyAttribute(AProxy)


def install(cls: C) -> C:
    """Put the mixin's attributes on a class of others; it has opted in from then on, and so have its subclasses.

    The worker must do the same before its first job (BACKGROUNDED_APP). Raises ConfigurationError when the class has
    attributes of these names already.
    """
    if not is_class(cls):
        raise ConfigurationError(f"install() takes a class, not a {type(cls).__name__}.")
    for name in ("backgrounded", "abackgrounded"):
        if hasattr(cls, name) and not isinstance(_static(cls, name), _ProxyAttribute):
            raise ConfigurationError(f"{dotted_name(cls)} has an attribute {name!r} of its own: use background(obj).")
    try:
        for name in ("backgrounded", "abackgrounded", MIXIN):
            setattr(cls, name, vars(Backgrounded)[name])
    except TypeError as error:
        raise ConfigurationError(f"{dotted_name(cls)} cannot be changed: use background(obj).") from error
    return cls


def _static(cls: type, name: str) -> Any:
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def background(obj: Any, **options: Unpack[OptionWords]) -> Proxy:
    """A proxy of any object, class or module, also one that we do not own: `background(reports).rebuild()`."""
    return Proxy(obj, _options(options))


def abackground(obj: Any, **options: Unpack[OptionWords]) -> AProxy:
    """`background` whose method calls are awaited: `await abackground(reports).rebuild()`."""
    return AProxy(obj, _options(options))


# -- later(f)


class Later(Generic[P, R_co]):
    """`later(f)`: called like `f`, it submits the call and returns a `Job`."""

    __slots__ = ("_name", "_obj", "_options")

    def __init__(self, obj: Any, name: str, options: Options) -> None:
        self._obj = obj
        self._name = name
        self._options = options

    @overload
    def __call__(self: Later[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> Job[T]: ...
    @overload
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Job[R_co]: ...
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return _send(self._obj, self._name, args, kwargs, self._options)

    def map(self, items: Iterable[Any]) -> MapResult:
        """One call for each item, in trips of a thousand and constant memory; sends before it returns.

        An item that cannot be called with raises its CallError at once; trips that went stay sent. A trip that the
        engine does not take is counted as failed, but when nothing has been sent yet its error is raised.
        """
        return self._map((item,) for item in items)

    def starmap(self, items: Iterable[Iterable[Any]]) -> MapResult:
        """`map` in which each item is a tuple of positional arguments."""
        return self._map(tuple(item) for item in items)

    def imap(self, items: Iterable[Any]) -> Iterator[Job[R_co]]:
        """`map` that yields the jobs as it sends them. Raises what a trip raises."""
        for trip in self._trips((item,) for item in items):
            _runtime.deliver_all(trip)
            yield from (job_of(ticket) for ticket in trip)

    def _trips(self, arguments: Iterable[tuple[Any, ...]]) -> Iterator[list[_runtime.Ticket]]:
        stream = iter(arguments)
        while trip := [
            _runtime.prepare(self._obj, self._name, args, {}, self._options) for args in islice(stream, _runtime.TRIP)
        ]:
            yield trip

    def _map(self, arguments: Iterable[tuple[Any, ...]]) -> MapResult:
        sent = failed = 0
        errors: list[BackgroundedError] = []
        for trip in self._trips(arguments):
            try:
                _runtime.deliver_all(trip)
            except EnqueueError as error:
                if not sent and not any(ticket.state is None for ticket in trip):
                    raise
                errors = [*errors, error][:10]
            gone = sum(ticket.state is None for ticket in trip)
            sent, failed = sent + gone, failed + len(trip) - gone
        return MapResult(sent, failed, tuple(errors))

    def __repr__(self) -> str:
        return f"<{self._name} later>"


class ALater(Generic[P, R_co]):
    """`alater(f)`: called like `f` and awaited, it submits the call and gives a `Job`."""

    __slots__ = ("_name", "_obj", "_options")

    def __init__(self, obj: Any, name: str, options: Options) -> None:
        self._obj = obj
        self._name = name
        self._options = options

    @overload
    async def __call__(self: ALater[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> Job[T]: ...
    @overload
    async def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Job[R_co]: ...
    async def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return await _asend(self._obj, self._name, args, kwargs, self._options)


def later(function: Callable[P, R], **options: Unpack[OptionWords]) -> Later[P, R]:
    """A bound method or plain function, to be called in the background with exactly its own parameters:
    `later(user.do_stuff, queue="custom")(2)` is a `Job[str]` for a type checker."""
    return Later(*_owner_and_name(function), _options(options))


def alater(function: Callable[P, R], **options: Unpack[OptionWords]) -> ALater[P, R]:
    """`later` whose call is awaited: `job = await alater(send_mail)("a@b.c")`."""
    return ALater(*_owner_and_name(function), _options(options))


def _owner_and_name(function: Any) -> tuple[Any, str]:
    """The object, class or module that a callable belongs to, and its name there."""
    if isinstance(function, Backgroundable):
        function = function.raw
    if isinstance(function, Bound):
        return function.__self__, function._method.__name__
    if isinstance(function, MethodType):
        return function.__self__, function.__func__.__name__
    if isinstance(function, BuiltinFunctionType) or not isinstance(function, FunctionType):
        raise CallError(f"later() takes a method or a plain function, not {type(function).__name__}.")
    module = sys.modules.get(function.__module__)
    path = function.__qualname__.split(".")
    if module is None or module.__name__ == "__main__" or "<" in function.__qualname__:
        where = "in the program itself" if function.__module__ == "__main__" else "local or a lambda"
        raise NotAllowed(
            f"{function.__module__}.{function.__qualname__}",
            f"it is {where}: no worker can find it. Move it to the top level of a module.",
        )
    owner: Any = module
    for part in path[:-1]:
        owner = vars(owner).get(part)
        if not is_class(owner):
            raise NotAllowed(f"{function.__module__}.{function.__qualname__}", "there is nothing under this name.")
    if isinstance(owner, type) and isinstance(vars(owner).get(path[-1]), FunctionType):
        raise CallError(f"{function.__qualname__} is a method of instances: give later() the method of an object.")
    return owner, path[-1]


# -- @backgroundable


class Backgroundable(Declared, Generic[P, R]):
    """A method that was declared with `@backgroundable`: it runs now when called, and has `.later`.

    Beside it stands its twin, `do_stuff_backgrounded`, which runs it in the background. For a type checker a declared
    function is one of these, too; at run time it stays the function it was.
    """

    def __init__(self, raw: Any, options: Options) -> None:
        super().__init__(raw, options)
        functools.update_wrapper(cast(Any, self), getattr(raw, "__func__", raw))

    def __set_name__(self, owner: type, name: str) -> None:
        if f"{name}_backgrounded" not in vars(owner):
            setattr(owner, f"{name}_backgrounded", _twin(self, name))

    @overload
    def __get__(self: Backgroundable[Concatenate[S, Q], R], obj: S, owner: type | None = None) -> Bound[Q, R]: ...
    @overload
    def __get__(self, obj: None, owner: type) -> Bound[P, R]: ...
    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        return Bound(owner if obj is None else obj, self.raw.__get__(obj, owner))

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs it now, where something calls the class's attribute itself."""
        return cast(R, self.raw(*args, **kwargs))

    @property
    def later(self) -> Later[P, R]:
        """Below `@staticmethod` the descriptor itself is what the class gives; below `@classmethod`, since Python 3.13,
        it cannot know the class, which may be a subclass."""
        owner, name = _owner_and_name(self.raw)
        if isinstance(_static(owner, name), classmethod):
            raise CallError(f"{self.raw.__qualname__}: put @backgroundable above @classmethod, for .later to work.")
        return Later(owner, name, NO_OPTIONS)


class Bound(Generic[P, R]):
    """`order.send_confirmation`, of a declared method: called, it runs now; `.later(...)` in the background."""

    def __init__(self, obj: Any, method: Callable[..., Any]) -> None:
        functools.update_wrapper(cast(Any, self), method)
        self.__self__ = obj
        self._method = method

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return cast(R, self._method(*args, **kwargs))

    @property
    def later(self) -> Later[P, R]:
        """Called like the method, it submits the call and returns a `Job`."""
        return Later(self.__self__, self._method.__name__, NO_OPTIONS)

    def __repr__(self) -> str:
        return repr(self._method)


def _twin(declared: Declared, name: str) -> Any:
    """The twin of a declared method, as a plain method so that `dir()`, `help()` and completion show it."""
    function = getattr(declared.raw, "__func__", declared.raw)

    def twin(self: Any, /, *args: Any, **kwargs: Any) -> Job[Any]:
        return _send(self, name, args, kwargs, NO_OPTIONS)

    functools.update_wrapper(twin, function)
    twin.__name__ = f"{name}_backgrounded"
    twin.__qualname__ = f"{function.__qualname__}_backgrounded"
    twin.__doc__ = f"Run `{name}` in the background; returns a Job.\n\n{function.__doc__ or ''}".rstrip()
    return twin if isinstance(declared.raw, FunctionType) else classmethod(twin)


class _Decorator(Protocol):
    """What `@backgroundable(...)` with options gives."""

    @overload
    def __call__(self, thing: C, /) -> C: ...  # type: ignore[overload-overlap]  # a class is callable, too: first wins
    @overload
    def __call__(self, thing: classmethod[S, P, R], /) -> Backgroundable[Concatenate[type[S], P], R]: ...
    @overload
    def __call__(self, thing: staticmethod[P, R], /) -> Backgroundable[Concatenate[Any, P], R]: ...
    @overload
    def __call__(self, thing: Callable[P, R], /) -> Backgroundable[P, R]: ...


@overload
def backgroundable(thing: C, /) -> C: ...  # type: ignore[overload-overlap]  # a class is callable, too: first wins
@overload
def backgroundable(thing: classmethod[S, P, R], /) -> Backgroundable[Concatenate[type[S], P], R]: ...
@overload
def backgroundable(thing: staticmethod[P, R], /) -> Backgroundable[Concatenate[Any, P], R]: ...
@overload
def backgroundable(thing: Callable[P, R], /) -> Backgroundable[P, R]: ...
@overload
def backgroundable(*, inherit: Iterable[str] = (), **options: Unpack[OptionWords]) -> _Decorator: ...
def backgroundable(thing: Any = None, /, *, inherit: Iterable[str] = (), **options: Any) -> Any:
    """Opt in, with default options: `@backgroundable` or `@backgroundable(queue="mail", retry=Retry(5))`.

    On a class: the methods in its body, and the inherited ones named in `inherit`. On a method: that method, which
    gets `.later` and a twin `..._backgrounded`. On a function: it stays a function and gets `.later`.
    """
    if isinstance(inherit, str):
        raise ConfigurationError(f"inherit must be a list of names, such as inherit=[{inherit!r}], not one string.")
    if thing is None:
        return functools.partial(_declare, defaults=Options.of(options), inherit=frozenset(inherit))
    return _declare(thing, NO_OPTIONS, frozenset(inherit))


def _declare(thing: Any, defaults: Options, inherit: frozenset[str]) -> Any:
    if isinstance(thing, type):
        setattr(thing, OPT_IN, OptIn(defaults, inherit))
        return thing
    if inherit:
        raise ConfigurationError("inherit names inherited methods: it belongs on a class.")
    if isinstance(thing, (classmethod, staticmethod)) or (isinstance(thing, FunctionType) and _is_in_class(thing)):
        return Backgroundable(thing, defaults)
    if not isinstance(thing, FunctionType):
        raise ConfigurationError(f"@backgroundable takes a class, method or function, not {type(thing).__name__}.")
    setattr(thing, OPT_IN, OptIn(defaults))
    vars(thing)["later"] = Later(sys.modules[thing.__module__], thing.__name__, NO_OPTIONS)
    return thing


def _is_in_class(function: FunctionType) -> bool:
    """Whether a function is being defined in a class body: "User.do_stuff", not "send" or "make.<locals>.send"."""
    return "." in function.__qualname__.rpartition("<locals>.")[2]
