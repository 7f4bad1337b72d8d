"""The ``lite-transformer`` command: one file a verb, parsing and printing only."""
