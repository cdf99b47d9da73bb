"""Consumers of duplicate ids."""
