"""What do all tests share? The hooks of `bites.py`, which turn the outcome of a sabotaged contract round."""

from bites import pytest_collection_modifyitems, pytest_pycollect_makeitem, pytest_pyfunc_call

__all__ = ["pytest_collection_modifyitems", "pytest_pycollect_makeitem", "pytest_pyfunc_call"]
