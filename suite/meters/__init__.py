"""Meters: FLOPs, time, energy and memory, each of which says how it knows what it says."""
