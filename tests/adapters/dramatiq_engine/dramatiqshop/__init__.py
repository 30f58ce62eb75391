"""An application that uses Dramatiq, as it was before anybody thought of `backgrounded`."""
