"""fairseq's criteria over a vocabulary, on fused kernels where there is a GPU. Importing it makes fairseq use them."""

from lite_transformer.criterions import fused

__all__ = ["fused"]
