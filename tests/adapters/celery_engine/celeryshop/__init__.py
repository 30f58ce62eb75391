"""An application that uses Celery, as it was before anybody thought of `backgrounded`."""
