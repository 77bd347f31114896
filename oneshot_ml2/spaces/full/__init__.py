"""The `full` space: own loop nests, dataflows, buffers and orders."""
