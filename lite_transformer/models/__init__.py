"""fairseq models, their configuration and the named architectures. Importing it registers all of them."""

import lite_transformer.optim
from lite_transformer.models import lite_transformer, safe_load

__all__ = ["lite_transformer", "safe_load"]
