"""Stable ids for documents: a batch of files gets a range, a row the range's start plus its place in the file."""
