"""Tests of quality: storms, hostile input, other people's programs, comparisons and mutants."""
