"""Semantic deduplication."""
