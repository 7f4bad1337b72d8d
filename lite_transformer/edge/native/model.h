// A model as the engine holds it, and how it is read from a plan and the file of weights.
//
// A plan is a list of 64-bit integers that says what stands where in the file, written by `plan.py`. Nothing in it is
// trusted: sizes are checked against each other, and every tensor against the length of the file.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace lt {

// What a caller can meet; the text says what is wrong.
struct Problem : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Free {
    void operator()(void* p) const;
};

// Zeroed memory at a multiple of 64 bytes.
template <typename T>
std::unique_ptr<T[], Free> zeroed(size_t count);

// Zeroed memory of weights, piece behind piece in large pages where the system has them: a step reads all of it once.
class Arena {
  public:
    template <typename T>
    std::shared_ptr<T[]> take(size_t count) {
        const std::shared_ptr<uint8_t[]> where = bytes(count * sizeof(T));
        return std::shared_ptr<T[]>(where, reinterpret_cast<T*>(where.get()));
    }

  private:
    std::shared_ptr<uint8_t[]> bytes(size_t count);

    std::shared_ptr<uint8_t[]> chunk_;
    size_t used_ = 0, room_ = 0;
};

struct Linear {
    int in = 0, out = 0;
    bool is_int8 = false;
    std::shared_ptr<int8_t[]> codes;
    std::shared_ptr<float[]> values;
    std::vector<float> scales, bias;  // padded to whole blocks
    std::vector<int32_t> sums;

    PackedView view() const {
        return {in, out, codes.get(), values.get(), scales.data(), sums.data(), bias.empty() ? nullptr : bias.data()};
    }
    size_t bytes() const;
    // The rows `ids` of it alone, packed.
    std::shared_ptr<Linear> rows(const int64_t* ids, int count) const;
};

struct Norm {
    std::vector<float> weight, bias;
    float epsilon = 0;
    explicit operator bool() const { return !weight.empty(); }
};

struct Attention {
    int heads = 0, head_dim = 0, padded_dim = 0;
    Linear input;  // query, key and value of self-attention; the query alone of cross-attention
    Linear keys, values;  // of cross-attention
    Linear output;
    int inner() const { return heads * head_dim; }
    int padded() const { return heads * padded_dim; }
};

struct Convolution {
    int heads = 0, size = 0;
    bool gate = false, softmax = false, mask_after_gate = false, has_linear = false, is_dynamic = false;
    Linear linear1, linear2, generator;
    std::vector<float> kernels;  // (heads, size), of a lightweight one
    std::vector<float> edge;     // what a padded position holds before the convolution; empty: zeros
};

struct Branch {
    bool is_attention = false;
    int first = 0, width = 0;  // its channels
    int place = 0;             // its floats in what a step remembers
    Attention attention;
    Convolution convolution;
};

enum class Activation { kRelu, kTanh, kLinear, kSigmoid };

struct Layer {
    std::vector<Branch> branches;
    Norm norm, cross_norm, final_norm;
    Attention cross;
    Linear fc1, fc2;
    Activation activation = Activation::kRelu;
};

// Rows (V, C), scaled: those of a tied output where there is one, else its own.
struct Embedding {
    int count = 0, dim = 0;
    float scale = 1;
    const Linear* tied = nullptr;
    std::vector<int8_t> codes;
    std::vector<float> values, row_scales;
    void row(int64_t id, float* out) const;
};

struct Positions {
    int kind = 0;  // 0 none, 1 sinusoids, 2 a table
    int offset = 0, dim = 0, rows = 0;
    std::vector<float> frequencies, table;
    // To x (dim). One caller at a time: sinusoids are kept for the next.
    void add(int position, float* x);

  private:
    static constexpr int kKept = 256;  // positions
    std::vector<float> kept_;
};

struct Side {
    int dim = 0;
    bool normalize_before = false;
    const Embedding* embedding = nullptr;
    Positions positions;
    Norm embedding_norm, final_norm;
    std::vector<Layer> layers;
};

struct Model {
    int pad = 0, end = 0;
    Side encoder, decoder;
    std::unique_ptr<Embedding> source_embedding, target_embedding;
    Linear output;
    int key_floats = 0;   // what attention branches of the decoder remember of a row's step, in floats
    int conv_floats = 0;  // the same of convolutions
    int longest_kernel = 1;

    // Bytes of weights that a decoding step reads.
    size_t step_bytes() const;
};

// Raises: Problem if the plan and the file do not belong together.
std::unique_ptr<Model> read_model(const int64_t* plan, size_t plan_size, const uint8_t* file, size_t file_size,
                                  const Kernels& kernels);

}  // namespace lt
