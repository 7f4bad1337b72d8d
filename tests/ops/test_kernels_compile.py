"""Triton's interpreter takes what its compiler refuses: kernels are compiled for a GPU, without one."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

# In a process of its own: Triton decides once whether it interprets.
PROGRAM = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lite_transformer.ops import triton_attention, triton_rows

FLOATS = ("x", "residual", "weight", "bias", "normed", "summed", "grad", "extra", "grad_x", "grad_residual", "out")
FLOATS += ("queries", "keys_values", "grad_queries", "grad_keys_values")
POINTERS = dict.fromkeys(FLOATS, "*bf16") | dict.fromkeys(("statistics", "partial"), "*fp32")
POINTERS |= {"mask": "*u8", "seed": "*i64"}
DROPOUT = {"DROPOUT": True, "THRESHOLD": 429496730, "SCALE": 1 / 0.9}
ROWS = {"C": 496, "ALIGN": 16, "BR": 2, "BC": 512}


def wide_accesses(kernel, constants):
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: POINTERS.get(name, "i32") for name in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(kernel.arg_names) if name in POINTERS}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=aligned)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1}).asm["ptx"]
    print(kernel.__name__, *(ptx.count(f"{access}.global.v4.b32") for access in ("ld", "st")))


options = ROWS | DROPOUT | {"EPS": 1e-5, "ADDS": True, "NORMS": True, "EXTRA": True, "OWN_X": True, "RESIDUAL": True}
wide_accesses(triton_rows._forward_kernel, options)
wide_accesses(triton_rows._backward_kernel, options)
wide_accesses(triton_rows._thin_kernel, options)
wide_accesses(triton_rows._column_share_kernel, options | {"C": 248, "ALIGN": 8, "BR": 32, "BC": 64})
wide_accesses(triton_rows._share_total_kernel, {"C": 992, "BN": 128, "BC": 16})
heads = {"C": 256, "H": 4, "R": 64, "KEYS_AT": 256, "QUERY_COLUMNS": 768, "KEY_COLUMNS": 768, "BN": 16, "BR": 64}
options = heads | DROPOUT | {"HAS_MASK": True, "CAUSAL": True, "ALIGN": 16, "PRECISION": "ieee"}
wide_accesses(triton_attention._attention_kernel, options)
wide_accesses(triton_attention._attention_gradient_kernel, options)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the kernels themselves run")
def test_kernels_compile_and_load_sixteen_bytes_at_a_time(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    found = {name: (int(loads), int(stores)) for name, loads, stores in map(str.split, run.stdout.splitlines())}
    # a lane has 32 of a tile's 1024 halves, so four accesses a tensor: two inputs, and a norm's weight and bias
    least = {
        "_forward_kernel": (12, 8),
        "_backward_kernel": (12, 8),
        "_thin_kernel": (4, 4),
        "_column_share_kernel": (8, 0),
        "_share_total_kernel": (16, 0),
        # a lane has 32 of a tile's 1024 halves here too
        "_attention_kernel": (12, 4),
        "_attention_gradient_kernel": (16, 12),
    }
    assert found.keys() == least.keys()
    for name, (loads, stores) in least.items():
        assert found[name][0] >= loads and found[name][1] >= stores, (name, found[name])
