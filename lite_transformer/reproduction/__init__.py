"""Reproducing a table: which experiments are its rows (tables), running them (chain), what comes out (report)."""
