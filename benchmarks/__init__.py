"""The main job beside other ways of computing the same: ``python -m benchmarks --help``."""
