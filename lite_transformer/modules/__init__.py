"""The paper's parts as ``nn.Module``: convolutions, attention, Long-Short Range Attention."""

from lite_transformer.modules.attention import MultiheadAttention
from lite_transformer.modules.branches import BranchConfig, build_branch
from lite_transformer.modules.convolution import DynamicConv, LightweightConv
from lite_transformer.modules.lsra import LongShortRangeAttention

__all__ = [
    "BranchConfig",
    "DynamicConv",
    "LightweightConv",
    "LongShortRangeAttention",
    "MultiheadAttention",
    "build_branch",
]
