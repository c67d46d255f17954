"""The engine of dstbench: it knows no method and no task by name."""
