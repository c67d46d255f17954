"""A method and a task for dstbench; the entry points in pyproject.toml name them."""
