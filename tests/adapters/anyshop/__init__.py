"""One application, of which not a line knows its engine: BACKGROUNDED_URL says it."""
