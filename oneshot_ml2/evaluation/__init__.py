"""Picks and simulators held against exact optima, other ways to pick, and measured runs."""
