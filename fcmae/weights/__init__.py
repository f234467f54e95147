"""Weights in and out: layouts and their tables, conversion with proof, exports, loading."""
