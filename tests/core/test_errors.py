"""What else must an error bear than being raised?"""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
from backgrounded import BackgroundedError, errors

PARTS = {
    errors.HandlerNotFound: ("river", ["rq"]),
    errors.InvalidOption: ("delay", "is no delay"),
    errors.UnsupportedOption: ("delay", "river", ["queue"], "there is a reason"),
    errors.EncodeError: ("args[0]", "cannot travel"),
    errors.NotAllowed: ("shop.User", "is not allowed"),
    errors.Duplicate: ("key", "id"),
    errors.BatchError: (["a"], ["b"], ["c"]),
    errors.JobFailed: ("ValueError", "no", "Traceback"),
}
EVERY = [error for error in vars(errors).values() if inspect.isclass(error) and issubclass(error, BackgroundedError)]


@pytest.mark.parametrize("kind", EVERY)
def test_an_error_can_be_copied_and_pass_from_process_to_process(kind: type[BackgroundedError]) -> None:
    """What a pool of processes cannot unpickle ends the pool."""
    error = kind(*PARTS.get(kind, ("it failed",)))
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(other) is kind
        assert (other.args, str(other), vars(other)) == (error.args, str(error), vars(error))


def test_an_uncertain_hand_over_stays_uncertain() -> None:
    assert pickle.loads(pickle.dumps(errors.EnqueueError("who knows", uncertain=True))).uncertain is True
