"""How many cycles a program takes, one hardware design a file."""
