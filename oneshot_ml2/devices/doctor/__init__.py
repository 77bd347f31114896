"""What a device really does: probes, the board file that they make, and a soak (docs/doctor.md)."""
