"""Optimizers that fairseq lacks. Importing it registers them."""

from lite_transformer.optim import fused_adam, half_precision

__all__ = ["fused_adam", "half_precision"]
