"""Float graphs into integer graphs."""
