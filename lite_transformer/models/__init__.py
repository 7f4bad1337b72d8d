"""fairseq models, their configuration and the named architectures. Importing it registers all of them."""

from lite_transformer.models import language_model, lite_transformer, reference_lm_names, reference_names, safe_load

# fairseq imports models/ and tasks/ of a plugin; the optimizers come along with the models
from lite_transformer.optim import fused_adam

__all__ = ["fused_adam", "language_model", "lite_transformer", "reference_lm_names", "reference_names", "safe_load"]
