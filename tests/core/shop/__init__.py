"""A small application for the tests of the core: what stands in it is called in the background."""
