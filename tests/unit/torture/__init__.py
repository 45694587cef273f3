"""Tests of torture tests."""
