"""What picks schedules without a measurement: the networks, their weights and the pick."""
