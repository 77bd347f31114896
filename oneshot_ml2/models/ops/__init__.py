"""What the operators of a graph are: one file an operator, or a family of alike ones."""
