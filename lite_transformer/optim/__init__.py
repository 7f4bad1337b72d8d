"""Optimizers that fairseq lacks, and what its trainer does with them. Importing it registers them."""

from lite_transformer.optim import fused_adam, half_precision, run_ahead

__all__ = ["fused_adam", "half_precision", "run_ahead"]
