"""An application that uses Procrastinate."""
