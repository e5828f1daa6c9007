"""Runs extract and analyze: the command line now, Ray workers, plans and schedules on top of the same functions."""
