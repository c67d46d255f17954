"""Commands that print measurements of dstbench: `python -m benchmarks.<name>`."""
