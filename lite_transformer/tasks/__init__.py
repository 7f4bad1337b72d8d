"""fairseq tasks that fairseq lacks. Importing it registers them."""

from lite_transformer.tasks import compressed

__all__ = ["compressed"]
