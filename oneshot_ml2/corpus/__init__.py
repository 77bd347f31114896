"""Measured schedules in HDF5: how they are collected, written, read and managed."""
