"""Deduplication of training data on Apache Spark."""

__version__ = "0.1.0"
