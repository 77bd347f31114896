"""The networks' training."""
