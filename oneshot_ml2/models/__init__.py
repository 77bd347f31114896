"""Whole models: imported through TVM Relax, quantized, compiled for a VTA and the host, saved and run."""
