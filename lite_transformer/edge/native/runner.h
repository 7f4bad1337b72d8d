// Encoding and decoding with a model.
#pragma once

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels.h"
#include "model.h"
#include "threads.h"

namespace lt {

// Memory of states that are gone, for the next ones: what goes back to the system is cleared page by page when it comes
// again, which takes as long as a layer does. Callers of any thread.
class Spare : public std::enable_shared_from_this<Spare> {
  public:
    struct GiveBack {
        std::shared_ptr<Spare> spare;
        size_t floats = 0;
        void operator()(float* p) const { spare->give(p, floats); }
    };
    using Block = std::unique_ptr<float[], GiveBack>;

    Spare() = default;
    ~Spare();
    Spare(const Spare&) = delete;
    Spare& operator=(const Spare&) = delete;

    // Not zeroed; at a multiple of 64 bytes.
    Block take(size_t floats);

  private:
    static constexpr size_t kMost = 2 << 20;  // floats that are kept

    void give(float* p, size_t floats);

    std::mutex mutex_;
    std::vector<std::pair<size_t, float*>> blocks_;  // floats of each
    size_t kept_ = 0;
};

// Between two steps of a batch. A row is a beam of a sentence; what a row remembers of a step is written once, into the
// step's block, and found again by the row's history: beams change their order without any copy of it.
struct State {
    const Model* model = nullptr;  // whose it is
    struct Sentence {
        int first_row, length, padding;  // its tokens among those of the batch; padding in front of them
    };
    std::vector<Sentence> sentences;
    std::vector<int> alive;              // sentences that still have rows
    std::vector<Spare::Block> cross;     // by decoder layer: of each sentence (heads, tokens, key and value)
    std::vector<Spare::Block> keys;      // by step: rows of Model::key_floats
    std::vector<Spare::Block> windows;   // by step modulo the longest kernel: of Model::conv_floats
    std::vector<int> history;            // (rows, steps): the row of each step that a row goes back to
    int rows = 0, steps = 0;
    bool is_broken = false;  // an error came in the middle of a step
    std::shared_ptr<const Linear> projection;  // of the words that are allowed; null: of all
    std::shared_ptr<const std::vector<int64_t>> words;
};

// A linear layer's input: rows, coded for int8 layers by those that make them, or when a layer first asks for it.
struct Input {
    const float* x;
    size_t stride;
    int width = 0;
    bool is_coded = false;
    std::vector<uint8_t> codes;
    std::vector<float> scale;
    std::vector<int32_t> zero;
};

class Memory;

// One batch at a time; callers of several threads wait for each other.
class Runner {
  public:
    Runner(std::unique_ptr<Model> model, const Kernels& kernels, int threads);

    const Model& model() const { return *model_; }
    const Kernels& kernels() const { return kernels_; }
    int threads() const { return pool_.threads(); }

    // source: (batch, length), padded on the left. states: (batch, length, C) or null, zeros at padding.
    std::unique_ptr<State> encode(const int64_t* source, int batch, int length, float* states);

    // See `Engine.step` in engine.py; scores and found: (batch, beams, count).
    void step(State& state, const int64_t* tokens, const int64_t* order, const int64_t* sentences, int batch, int beams,
              int count, float* scores, int64_t* found, float* end_scores);

    // How many words a batch may write.
    int words_of(const State& state) const { return state.projection ? state.projection->out : model_->output.out; }

    // Words that may be written from the next `encode` on; null: all.
    void restrict_to(const int64_t* ids, int count);

  private:
    struct Job {
        const Linear* w;
        Input* x;
        float* y;
        size_t y_stride;
        bool relu;
    };

    int pieces_of(size_t cost) const;
    template <typename Work>
    void each_row(int rows, size_t cost, size_t floats, size_t pointers, const Work& work);
    void linears(const std::vector<Job>& jobs, int rows);
    bool begin_codes(const Job& job, int rows);
    void code_row(Input& input, int row);
    void layer(const Layer& layer, const Side& side, int rows, Memory& memory);
    void self_attention(const Layer& layer, const float* x, int dim, int rows, Memory& memory, float* out);
    void cross_attention(const Layer& layer, const float* x, int dim, int rows, Memory& memory, float* out);
    void feed_forward(const Layer& layer, const float* x, int dim, int rows, float* out);
    void normalise(const Norm& norm, float* x, const float* residual, int dim, int rows);
    template <typename Block>
    void sublayer(const Norm& norm, const Side& side, int rows, const Block& block);
    const int8_t* weights_ahead(const Linear& w, int block, int row, int rows) const;
    void compute(const Job& job, int first_row, int rows, int first, int last);
    void choose(const Linear& projection, const State& state, int rows, int count, float* scores, int64_t* found,
                float* end_scores);

    std::unique_ptr<Model> model_;
    const Kernels& kernels_;
    Pool pool_;
    std::mutex mutex_;
    const std::shared_ptr<Spare> spare_ = std::make_shared<Spare>();
    std::shared_ptr<const Linear> projection_;
    std::shared_ptr<const std::vector<int64_t>> words_;

    // reused from call to call
    std::vector<float> x_, y_, z_, hidden_, floats_;
    std::vector<const float*> pointers_;
    std::vector<Input> inputs_;
    std::vector<std::vector<float>> projected_, mixed_, generated_;
};

}  // namespace lt
