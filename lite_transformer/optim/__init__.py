"""Optimizers that fairseq lacks. Importing it registers them."""

from lite_transformer.optim import fused_adam

__all__ = ["fused_adam"]
