"""The engine of dstbench: it knows no method and no task by name."""

from dstbench import by_full_name

by_full_name(__name__)
