"""What a type checker sees of the ways to call. Checked by mypy --strict and pyright; never run."""

from backgrounded import Backgrounded, Job, Retry, State, abackground, alater, background, backgroundable, job, later
from typing_extensions import assert_type


class User(Backgrounded):
    def do_stuff(self, n: int = 1) -> str:
        return "x" * n

    async def fetch(self, url: str) -> bytes:
        return url.encode()

    @classmethod
    def sync(cls, key: int) -> float:
        return key / 2


class Order(Backgrounded):
    @backgroundable
    def send(self, to: str) -> int:
        return len(to)

    @backgroundable(queue="mail", retry=Retry(5))
    def confirm(self, to: str, *, copy: bool = False) -> int:
        return len(to) + copy


@backgroundable
class Report:
    def build(self) -> None: ...


@backgroundable(queue="slow")
def rebuild(year: int) -> list[str]:
    return [str(year)]


user, order = User(), Order()

assert_type(later(user.do_stuff, queue="custom")(2), Job[str])
assert_type(later(user.do_stuff)(2).result(timeout=5), str)
assert_type(later(user.fetch)("u"), Job[bytes])
assert_type(later(User.sync)(1), Job[float])
assert_type(order.send("a"), int)
assert_type(order.send.later("a"), Job[int])
assert_type(order.confirm.later("a", copy=True), Job[int])
assert_type(rebuild(2026), list[str])
assert_type(rebuild.later(2026), Job[list[str]])
assert_type(job("0" * 32).state, State)
Report().build()
user.backgrounded(queue="custom", delay=60).do_stuff(2)
background(user, priority="high").do_stuff(1)

later(user.do_stuff)("two")  # type: ignore[arg-type]  # pyright: ignore  # a str is not an int
later(user.do_stuff, quue="custom")  # type: ignore[call-arg]  # pyright: ignore  # no such option
order.send.later(1)  # type: ignore[arg-type]  # pyright: ignore  # an int is not a str
user.backgrounded(delay="soon")  # type: ignore[arg-type]  # pyright: ignore  # not a number of seconds


async def awaited() -> None:
    assert_type(await alater(user.do_stuff)(2), Job[str])
    assert_type(await alater(user.fetch)("u"), Job[bytes])
    await user.abackgrounded(queue="custom").do_stuff(1)
    await abackground(user).do_stuff(1)
