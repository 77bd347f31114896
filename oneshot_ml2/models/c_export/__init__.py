"""Compiled models as C99 projects without dependencies: the generated steps, the data, and the runtime's sources."""
