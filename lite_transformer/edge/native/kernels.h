// The arithmetic of the engine, one table of functions for each instruction set; the engine knows no other.
//
// A packed matrix (out, in) lies in blocks of 16 outputs. int8: [out / 16][in / 4][16][4], so that a 32-bit piece of the
// input meets four codes of each output. fp32: [out / 16][in][16]. What is missing to a whole block is zero.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lt {

constexpr int kBlock = 16;     // outputs that lie together
constexpr int kGroups = 32;    // of numbers: every 32nd one is of the same group
constexpr int kMostCode = 64;  // of int8 weights: 2 * 255 * 64 fits the 16 bits in which AVX2 adds two products

struct PackedView {
    int in, out;
    const int8_t* codes;    // one of the two
    const float* values;
    const float* scales;    // (out), of the codes
    const int32_t* sums;    // (out), of the codes of a row
    const float* bias;      // (out) or null
};

inline int fours(int n) { return (n + 3) / 4; }
inline int blocks(int n) { return (n + kBlock - 1) / kBlock; }
inline int rounded8(int n) { return (n + 7) / 8 * 8; }

// Rows of activations as uint8: x is about (code - zero) * scale, by row.
struct CodedRows {
    const uint8_t* codes;
    size_t stride;
    const float* scale;
    const int32_t* zero;
};

struct Kernels {
    const char* name;

    // One row of n floats -> n codes; codes behind them up to a multiple of four are not written.
    void (*encode_row)(const float* x, int n, uint8_t* codes, float* scale, int32_t* zero);

    // Runs of blocks of weights that are gone through side by side for so many rows.
    int (*runs)(int rows);

    // y = x W^T + bias for the blocks [first, last) of the outputs.
    void (*linear_int8)(const PackedView& w, const CodedRows& x, int rows, int first, int last, bool relu, float* y,
                        size_t y_stride);
    void (*linear_fp32)(const PackedView& w, const float* x, size_t x_stride, int rows, int first, int last, bool relu,
                        float* y, size_t y_stride);

    // x + residual -> layer norm, in x; residual may be null.
    void (*norm)(float* x, const float* residual, const float* weight, const float* bias, int n, float epsilon);

    // y = x[:n] * sigmoid(x[n:])
    void (*gate)(const float* x, float* y, int n);

    // In place; x has room for a multiple of 8.
    void (*softmax)(float* x, int n);

    // Attention of one row: queries and out are (heads, padded_dim). A head's key lies `head_offset` floats behind that
    // of the head before, its value `value_offset` floats behind the key. scores: room for rounded8(count).
    void (*attend)(const float* query, const float* const* keys, size_t head_offset, size_t value_offset, int count,
                   int heads, int padded_dim, float* scores, float* out);

    // out[h * R + r] = sum over k of kernels[h * K + k] * window[k][h * R + r]; a null row of the window is zero.
    void (*convolve)(const float* const* window, const float* kernels, int heads, int size, int head_dim, float* out);

    // Largest of each of the kGroups groups of x; -3e38 of one that has none.
    void (*maxima)(const float* x, int n, float* found);

    // Sum of exp(x - from). ahead: null, or weights that are brought nearer meanwhile, 8 bytes for each number.
    float (*exp_sum)(const float* x, int n, float from, const int8_t* ahead);
};

// Null where the compiler or the processor lacks the instructions.
const Kernels* generic_kernels();
const Kernels* avx2_kernels();
const Kernels* avxvnni_kernels();
const Kernels* avx512vnni_kernels();
const Kernels* neon_kernels();
const Kernels* dotprod_kernels();

}  // namespace lt
