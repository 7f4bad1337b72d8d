"""What one operation computes, as pure functions on ``(T, B, C)`` tensors; the loss on logits ``(..., V)``.

Letters: T time, B batch, C channels, H heads, K kernel size, R = C / H channels per head, V vocabulary.
"""

from lite_transformer.ops.attention import short_attention, uses_short_attention
from lite_transformer.ops.backends import BACKENDS, draw_seeds
from lite_transformer.ops.bias import linear, uses_row_kernels
from lite_transformer.ops.convolution import dynamic_conv, lightweight_conv
from lite_transformer.ops.cross_entropy import label_smoothed_cross_entropy
from lite_transformer.ops.reference import dynamic_conv_step, lightweight_conv_step
from lite_transformer.ops.residual import dropout_add, residual_norm

__all__ = [
    "BACKENDS",
    "draw_seeds",
    "dropout_add",
    "dynamic_conv",
    "dynamic_conv_step",
    "label_smoothed_cross_entropy",
    "lightweight_conv",
    "lightweight_conv_step",
    "linear",
    "residual_norm",
    "short_attention",
    "uses_row_kernels",
    "uses_short_attention",
]
