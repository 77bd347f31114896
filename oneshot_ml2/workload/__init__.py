"""What is computed: one operator a file, with its shapes, costs and numpy reference."""
