"""fairseq models, their configuration and the named architectures. Importing it registers all of them."""

from lite_transformer.models import lite_transformer

__all__ = ["lite_transformer"]
