"""fairseq tasks that fairseq lacks. Importing it registers them."""

# fairseq imports models/ and tasks/ of a plugin; the criteria come along with the tasks
from lite_transformer.criterions import adaptive, fused
from lite_transformer.tasks import compressed

__all__ = ["adaptive", "compressed", "fused"]
