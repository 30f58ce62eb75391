"""Values and targets that the tests send: one class of each kind, good ones first, and traps.

Whatever must not be touched by a wire appends to `CANARY`; the tests find it empty.
"""

import collections
import enum
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

import attrs
import msgspec
import pydantic
from backgrounded.calls import NO_OPTIONS
from backgrounded.errors import TargetGone
from backgrounded.references import OPT_IN, Declared, OptIn
from pydantic.alias_generators import to_camel

CANARY: list[str] = []


def touch(name: str = "touch") -> None:
    CANARY.append(name)


def __getattr__(name: str) -> Any:
    # Names in a wire are looked up in dictionaries: whoever walks with getattr comes by here. Python's own import
    # machinery and pytest do walk, for names that begin with underscores.
    if not name.startswith("_"):
        touch(f"values.{name}")
    raise AttributeError(name)


def opted_in(thing: Any) -> Any:
    """What @backgroundable does to a class or function, without the rest of the library."""
    setattr(thing, OPT_IN, OptIn())
    return thing


# -- enums


class Color(enum.Enum):
    RED = 1
    GREEN = 2
    ROUGE = 1  # noqa: PIE796 - an alias, on purpose


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Currency(str, enum.Enum):
    EUR = "eur"
    USD = "usd"


class Planet(enum.Enum):
    EARTH = (5.97, 6.37)
    MARS = (0.642, 3.39)

    def __init__(self, mass: float, radius: float) -> None:
        self.mass = mass
        self.radius = radius


class Permission(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


class Mode(enum.IntFlag):
    A = 1
    B = 2


# -- named tuples


class Point(NamedTuple):
    x: Any
    y: Any = 0


Pair = collections.namedtuple("Pair", ["one", "two"])


class NamedPair(Pair):
    pass


class DoublingPoint(Point):
    def __new__(cls, x: Any, y: Any = 0) -> "DoublingPoint":
        return super().__new__(cls, x * 2, y)


# -- dataclasses


@dataclass(frozen=True)
class Money:
    amount: Any
    currency: Any = "EUR"


@dataclass
class Cart:
    items: list[Any] = field(default_factory=list)
    note: Any = None

    @cached_property
    def count(self) -> int:
        return len(self.items)


@dataclass(slots=True, kw_only=True)
class Line:
    item: Any
    amount: Any = 1


@dataclass(eq=False)
class Unequal:
    value: Any


T = TypeVar("T")


@dataclass
class Holder(Generic[T]):
    value: T


@dataclass
class Outer:
    @dataclass(frozen=True)
    class Inner:
        value: Any = None

    inner: Any = None


@pydantic.dataclasses.dataclass
class Checked:
    number: int
    tags: list[str] = pydantic.Field(default_factory=list)


# -- attrs


@attrs.define
class Box:
    width: Any
    _secret: Any = None
    other: Any = attrs.field(default=0, alias="another")


@attrs.frozen
class Size:
    name: str = attrs.field(converter=str.upper)
    value: Any = 1


# -- pydantic


class Item(pydantic.BaseModel):
    name: Any
    amount: int = pydantic.Field(default=1, alias="howMany")
    tags: list[Any] = pydantic.Field(default_factory=list)
    place: Any = pydantic.Field(default=None, validation_alias=pydantic.AliasChoices("spot", "location"))


class Basket(pydantic.BaseModel):
    items: list[Item]
    payload: Any = None


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    known: Any = 1


class Labels(pydantic.RootModel[list[str]]):
    pass


class Counted(pydantic.BaseModel):
    number: int
    _seen: int = pydantic.PrivateAttr(default=0)


class ByNameOnly(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(validate_by_alias=False, validate_by_name=True)
    value: Any = pydantic.Field(alias="wert")


class Early(pydantic.BaseModel):
    """Names a class that does not exist yet, so that pydantic finishes it at its first use."""

    model_config = pydantic.ConfigDict(alias_generator=to_camel)
    some_value: int
    later_value: "Later | None" = None


class Later(pydantic.BaseModel):
    value: int


# -- msgspec


class Span(msgspec.Struct, rename="camel"):
    starts_at: Any
    ends_at: Any = None


class Frozen(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    value: Any


# -- targets


@opted_in
class Counter:
    def __init__(self, start: int = 0, *, step: int = 1) -> None:
        self.start = start
        self.step = step

    def __backgrounded_args__(self) -> Any:
        return (self.start,), {"step": self.step}

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]

    def add(self, *args: Any, **kwargs: Any) -> int:
        return self.start + self.step

    @property
    def danger(self) -> int:
        touch("Counter.danger")
        return 1

    def _private(self) -> None:
        touch("Counter._private")

    class Nested:
        def go(self) -> None:
            touch("Counter.Nested.go")

    @staticmethod
    def static() -> None:
        """Fine."""

    @classmethod
    def make(cls) -> None:
        """Fine."""


class OneMethod:
    """Only one method of it has opted in."""

    def __init__(self) -> None:
        touch("OneMethod()")

    def __backgrounded_args__(self) -> Any:
        return (), {}

    def _go(self) -> None:
        """Fine."""

    def stay(self) -> None:
        touch("OneMethod.stay")

    _go.__name__, _go.__qualname__ = "go", "OneMethod.go"
    go = Declared(_go, NO_OPTIONS)


@opted_in
class Greedy:
    """Its constructor takes everything."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        touch("Greedy()")

    def __backgrounded_args__(self) -> Any:
        return (), {}

    def add(self) -> None:
        """Fine."""


@opted_in
class Blank:
    """Nothing is lost when it is built again: it has no constructor and holds nothing."""

    def go(self, *args: Any, **kwargs: Any) -> None:
        """Fine."""


@opted_in
def send(*args: Any, **kwargs: Any) -> str:
    return "sent"


@opted_in
class Held:
    """Holds something, and does not say how to build it again."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Record:
    """An object that lives in a store."""

    def __init__(self, key: Any) -> None:
        self.key = key

    def go(self) -> None:
        """Fine."""


opted_in(Record)


@dataclass
class DataRecord(Record):
    """A record that is a dataclass too, as SQLAlchemy's MappedAsDataclass makes them."""

    key: Any


class Shelf:
    """A locator: records by key, with every way to fail."""

    name = "shelf"

    def __init__(self) -> None:
        self.records: dict[Any, Any] = {}

    def put(self, record: Any) -> Any:
        self.records[record.key] = record
        return record

    def refer(self, obj: Any) -> Any:
        if not isinstance(obj, Record):
            return None
        if obj.key == "unsaved":
            raise ValueError("this record has no key yet")
        return obj.key

    def find(self, key: Any) -> Any:
        if key == "down":
            raise ConnectionError("no route to secret-host")
        if key == "nothing":
            return None
        if key not in self.records:
            raise TargetGone("There is no such record.")
        return self.records[key]


# -- traps: what must be refused at the call


@dataclass
class WithInitFalse:
    value: int
    total: int = field(init=False, default=0)


@dataclass
class WithInitVar:
    value: int
    scale: InitVar[int] = 1

    def __post_init__(self, scale: int) -> None:
        self.value *= scale


@dataclass
class Doubling:
    value: int
    log: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.value *= 2
        self.log.append(self.value)


@dataclass(init=False)
class OwnInit:
    value: int

    def __init__(self, other: int) -> None:
        self.value = other


@dataclass
class DictData(dict):  # type: ignore[type-arg]
    value: int = 0


class Slotted:
    __slots__ = ("cache",)


@dataclass
class SlottedData(Slotted):
    value: int = 0


@attrs.define
class AttrsInitFalse:
    value: int = 0
    total: int = attrs.field(init=False, default=0)


@attrs.define
class Shouting:
    text: str = attrs.field(converter=lambda text: text + "!")


class Hashing(pydantic.BaseModel):
    password: str

    @pydantic.field_validator("password")
    @classmethod
    def hash(cls, value: str) -> str:
        return f"hashed:{value}"


class Sly(pydantic.BaseModel):
    """Its validation gives an instance of something else."""

    number: int

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def swap(cls, data: Any, handler: Any) -> Any:
        return Counted(number=1)


class Deep(pydantic.BaseModel):
    value: int = pydantic.Field(validation_alias=pydantic.AliasPath("a", "b"))


class NoReturn:
    def __backgrounded_args__(self) -> Any:
        return None


class Raising:
    def __backgrounded_args__(self) -> Any:
        raise RuntimeError("secret-value")


opted_in(NoReturn)
opted_in(Raising)


# -- traps: what a wire must not reach


class Unopted:
    """Not opted in: nothing of it may run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        touch("Unopted()")

    def __backgrounded_args__(self) -> Any:
        return (), {}

    def go(self) -> None:
        touch("Unopted.go")


class Meta(type):
    def __getattr__(cls, name: str) -> Any:
        if not name.startswith("_"):
            touch(f"Meta.{name}")
        raise AttributeError(name)

    def meta_method(cls) -> None:
        touch("Meta.meta_method")


@opted_in
class WithMeta(metaclass=Meta):
    pass


@dataclass
class Explosive:
    """A value class whose constructor raises, with a secret in its message."""

    value: Any

    def __post_init__(self) -> None:
        if self.value == "boom":
            raise RuntimeError("secret-value")


@opted_in
def generator() -> Any:
    yield touch("generator")


unopted_function = touch
alias_of_send = send
an_object = Held(1)
