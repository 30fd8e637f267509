"""The tables of scripts/benchmark.py, one file each."""
