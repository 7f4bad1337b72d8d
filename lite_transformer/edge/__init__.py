"""Exported models: what makes them (`export`, needs torch) and what runs them (`Translator`, needs neither torch nor
fairseq)."""

from lite_transformer.edge.runtime import Hypothesis, Translator

__all__ = ["Hypothesis", "Translator"]
