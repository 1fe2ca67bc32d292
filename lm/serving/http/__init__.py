"""The HTTP side of the server: routes, schemas, limits and metrics."""
