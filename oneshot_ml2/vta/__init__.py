"""The machine: accelerators, programs, what they compute and how many cycles they take. No TVM and no torch in here."""
