"""Runs extract and analyze: the command line now, Ray workers, plans and schedules on top of the same functions."""

import logging

logging.getLogger("affectome").addHandler(logging.NullHandler())  # or Python prints warnings that nobody asked for
