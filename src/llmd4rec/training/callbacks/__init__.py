"""What happens beside the steps of a training: averages, schedules, checkpoints, stopping, progress."""
