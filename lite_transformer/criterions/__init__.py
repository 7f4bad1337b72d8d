"""fairseq's criteria over a vocabulary as a GPU likes them. Importing it makes fairseq use them."""

from lite_transformer.criterions import adaptive, fused

__all__ = ["adaptive", "fused"]
