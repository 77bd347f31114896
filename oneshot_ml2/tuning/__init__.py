"""Better schedules by measurements: the tuners, their runs and logs, refinement and fine-tuning."""
