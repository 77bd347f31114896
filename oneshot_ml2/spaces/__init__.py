"""What may be chosen: the schedule spaces, one a folder."""
