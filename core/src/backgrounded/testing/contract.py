"""What does every handler promise?

`HandlerContract` is the promises of a handler as tests: of ours, and of anybody's. It looks at effects in real workers,
through an oracle that stands outside of the system under test (`probe.py`). The K ids are those of the project's list
of behaviours.
"""

from __future__ import annotations

from typing import ClassVar

from .promises.calls import Arguments, Handles, Targets
from .promises.endings import Endings, Retries
from .promises.many import Batches, Uniqueness
from .promises.queues import Queues
from .promises.times import Priorities, Times
from .promises.troubles import Declarations, Troubles


class HandlerContract(
    Arguments,
    Targets,
    Handles,
    Queues,
    Times,
    Priorities,
    Retries,
    Endings,
    Uniqueness,
    Batches,
    Troubles,
    Declarations,
):
    """The promises of a handler, as a test suite. Subclass it as `Test...` and give it two things:

    - a fixture `handler`, best with `scope="class"`: then the tests share one worker;
    - a context manager `worker(self, handler, *queues)` in which the engine's real worker runs the jobs of these
      queues, one at a time, ready at the beginning of the block and ended at its end. It must import
      `backgrounded.testing.probe` (BACKGROUNDED_APP=backgrounded.testing.probe).

    A test whose feature the handler does not declare is skipped and says which; before that, the option is made sure to
    be refused at the call. What else can be given: `dead_handler`, `environment`, `worker_output` (see `Frame`), and

    `deadline`: seconds that a test waits for an effect that must come, of many for each. `lateness`: seconds by which a
    job that is due may be late. `immediate`: jobs run at the call. `runs`: whether jobs run at all. `many`: the size of
    a big batch.

    A promise cannot be overridden without a reason: `exempt` maps the names of tests to sentences that say why this
    handler cannot keep them. Such a test is skipped with the reason, or replaced where the subclass has its own.
    """

    __contract__: ClassVar[bool] = True
