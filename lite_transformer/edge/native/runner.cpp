#include "runner.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <new>
#include <utility>

namespace lt {

namespace {

// Costs are in int8 multiply-adds, or as much time as one takes: measured with AVX2.
// Between processors that share no cache, handing over a piece and getting its result takes some two microseconds.
constexpr size_t kWorthSharing = 240000;  // about three
constexpr size_t kPiece = 480000;
constexpr size_t kProduct = 8;   // of floats
constexpr size_t kCoded = 24;    // a float that becomes a code
constexpr size_t kNormed = 24;   // a float that is normalised
constexpr int kRowTile = 128;            // rows whose codes stay in the cache while weights pass
constexpr int kChunk = 1024;             // words of which one piece computes and finds the likeliest; whole blocks
constexpr int kMostSorted = 64;          // candidates that are found by insertion
constexpr int kFewRows = 8;

using Candidate = std::pair<float, int>;

bool is_better(const Candidate& a, const Candidate& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
}

// (heads, head_dim) -> heads that lie `step` floats apart, with zeros up to padded_dim.
void pad_heads(const Attention& attention, const float* from, float* to, size_t step) {
    for (int head = 0; head < attention.heads; ++head, from += attention.head_dim, to += step) {
        std::memcpy(to, from, sizeof(float) * attention.head_dim);
        for (int i = attention.head_dim; i < attention.padded_dim; ++i) to[i] = 0.0f;
    }
}

void unpad_heads(const Attention& attention, const float* from, float* to) {
    for (int head = 0; head < attention.heads; ++head)
        std::memcpy(to + size_t(head) * attention.head_dim, from + size_t(head) * attention.padded_dim,
                    sizeof(float) * attention.head_dim);
}

void grow(std::vector<float>& buffer, size_t size) {
    if (buffer.size() < size) buffer.resize(size);
}

}  // namespace

// Where rows put their keys, values and convolution inputs, and where they find those that they see.
class Memory {
  public:
    virtual ~Memory() = default;
    virtual float* own_keys(int row, const Branch& branch) = 0;
    virtual int most_keys() const = 0;
    virtual int keys(int row, const Branch& branch, const float** found) = 0;
    virtual float* own_input(int row, const Branch& branch) = 0;
    virtual void window(int row, const Branch& branch, const float** found) = 0;
    // of cross-attention
    virtual int most_cross() const { return 0; }
    virtual int cross(int, const Attention&, const float**, size_t*) { return 0; }
};

namespace {

// The encoder's: every token of a sentence sees all of them.
class TokenMemory : public Memory {
  public:
    TokenMemory(const State& state, int rows, Spare& spare) : rows_(rows), spare_(spare), of_row_(rows) {
        for (size_t i = 0; i < state.sentences.size(); ++i) {
            const State::Sentence& sentence = state.sentences[i];
            longest_ = std::max(longest_, sentence.length);
            for (int s = 0; s < sentence.length; ++s) of_row_[sentence.first_row + s] = &sentence;
        }
    }

    // Room for a layer.
    void prepare(const Layer& layer) {
        size_t key_floats = 0, input_floats = 0;
        key_place_.clear();
        for (const Branch& branch : layer.branches) {
            if (branch.is_attention) {
                key_place_.push_back(key_floats);
                key_floats += size_t(rows_) * 2 * branch.attention.padded();
            } else {
                key_place_.push_back(input_floats);
                input_floats += size_t(rows_) * rounded8(branch.width);
            }
        }
        if (key_floats > key_room_) keys_ = spare_.take(key_room_ = key_floats);
        if (input_floats > input_room_) inputs_ = spare_.take(input_room_ = input_floats);
        layer_ = &layer;
    }

    float* own_keys(int row, const Branch& branch) override {
        return keys_.get() + place(branch) + size_t(row) * 2 * branch.attention.padded();
    }
    int most_keys() const override { return longest_; }
    int keys(int row, const Branch& branch, const float** found) override {
        const State::Sentence& sentence = *of_row_[row];
        for (int s = 0; s < sentence.length; ++s) found[s] = own_keys(sentence.first_row + s, branch);
        return sentence.length;
    }
    float* own_input(int row, const Branch& branch) override {
        return inputs_.get() + place(branch) + size_t(row) * rounded8(branch.width);
    }
    void window(int row, const Branch& branch, const float** found) override {
        const State::Sentence& sentence = *of_row_[row];
        const Convolution& conv = branch.convolution;
        for (int k = 0; k < conv.size; ++k) {
            const int s = row - sentence.first_row + k - conv.size / 2;
            if (s >= 0 && s < sentence.length) {
                found[k] = own_input(sentence.first_row + s, branch);
            } else {
                const bool is_padding = s < 0 && s >= -sentence.padding && !conv.edge.empty();
                found[k] = is_padding ? conv.edge.data() : nullptr;
            }
        }
    }

  private:
    size_t place(const Branch& branch) const { return key_place_[size_t(&branch - layer_->branches.data())]; }

    int rows_, longest_ = 0;
    Spare& spare_;
    size_t key_room_ = 0, input_room_ = 0;
    std::vector<const State::Sentence*> of_row_;
    std::vector<size_t> key_place_;
    Spare::Block keys_, inputs_;
    const Layer* layer_ = nullptr;
};

// The decoder's, at the newest step of a state.
class StepMemory : public Memory {
  public:
    StepMemory(const State& state, const Model& model, const std::vector<int>& history, const std::vector<int>& alive,
               int beams)
        : state_(state), model_(model), history_(history), alive_(alive), beams_(beams), steps_(state.steps + 1) {
        for (const int sentence : alive) longest_ = std::max(longest_, state.sentences[size_t(sentence)].length);
    }

    void prepare(int layer) { cross_ = state_.cross[size_t(layer)].get(); }

    float* own_keys(int row, const Branch& branch) override { return keys_at(state_.steps, row) + branch.place; }
    int most_keys() const override { return steps_; }
    int keys(int row, const Branch& branch, const float** found) override {
        const int* history = history_.data() + size_t(row) * steps_;
        for (int t = 0; t < steps_; ++t) found[t] = keys_at(t, history[t]) + branch.place;
        return steps_;
    }
    float* own_input(int row, const Branch& branch) override { return inputs_at(state_.steps, row) + branch.place; }
    void window(int row, const Branch& branch, const float** found) override {
        const int* history = history_.data() + size_t(row) * steps_;
        const int size = branch.convolution.size;
        for (int k = 0; k < size; ++k) {
            const int t = steps_ - size + k;
            found[k] = t < 0 ? nullptr : inputs_at(t, history[t]) + branch.place;
        }
    }
    int most_cross() const override { return longest_; }
    int cross(int row, const Attention& attention, const float** found, size_t* head_offset) override {
        const State::Sentence& sentence = state_.sentences[size_t(alive_[size_t(row / beams_)])];
        const float* first = cross_ + size_t(sentence.first_row) * 2 * attention.padded();
        for (int s = 0; s < sentence.length; ++s) found[s] = first + size_t(s) * 2 * attention.padded_dim;
        *head_offset = size_t(sentence.length) * 2 * attention.padded_dim;
        return sentence.length;
    }

  private:
    float* keys_at(int step, int row) const {
        return state_.keys[size_t(step)].get() + size_t(row) * model_.key_floats;
    }
    float* inputs_at(int step, int row) const {
        return state_.windows[size_t(step % model_.longest_kernel)].get() + size_t(row) * model_.conv_floats;
    }

    const State& state_;
    const Model& model_;
    const std::vector<int>& history_;
    const std::vector<int>& alive_;
    int beams_, steps_, longest_ = 0;
    const float* cross_ = nullptr;
};

}  // namespace

Spare::~Spare() {
    for (const auto& block : blocks_) std::free(block.second);
}

Spare::Block Spare::take(size_t floats) {
    floats = (floats + kBlock - 1) / kBlock * kBlock + kBlock;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (size_t i = blocks_.size(); i-- > 0;) {
            const auto [size, p] = blocks_[i];
            if (size < floats || size / 2 > floats) continue;
            blocks_.erase(blocks_.begin() + std::ptrdiff_t(i));
            kept_ -= size;
            return Block(p, {shared_from_this(), size});
        }
    }
    void* memory = std::aligned_alloc(64, floats * sizeof(float));
    if (memory == nullptr) throw std::bad_alloc();
    return Block(static_cast<float*>(memory), {shared_from_this(), floats});
}

void Spare::give(float* p, size_t floats) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (kept_ + floats > kMost) {
        std::free(p);
        return;
    }
    kept_ += floats;
    blocks_.emplace_back(floats, p);
}

Runner::Runner(std::unique_ptr<Model> model, const Kernels& kernels, int threads)
    : model_(std::move(model)), kernels_(kernels), pool_(threads) {}

// Into how many pieces to cut work: no more than needed, for each is handed over.
int Runner::pieces_of(size_t cost) const {
    if (pool_.sharing() == 1 || cost < kWorthSharing) return 1;
    return int(std::max(size_t(pool_.sharing()), cost / kPiece));
}

// work(row, floats, pointers) for every row; cost: of a row. Each piece has memory of its own.
template <typename Work>
void Runner::each_row(int rows, size_t cost, size_t floats, size_t pointers, const Work& work) {
    const int pieces = std::min(rows, pieces_of(size_t(rows) * cost));
    floats = (floats + 15) / 16 * 16;
    pointers = (pointers + 7) / 8 * 8;
    grow(floats_, pieces * floats);
    if (pointers_.size() < pieces * pointers) pointers_.resize(pieces * pointers);
    pool_.run(pieces, [&](int piece) {
        const int first = int(int64_t(rows) * piece / pieces), last = int(int64_t(rows) * (piece + 1) / pieces);
        for (int row = first; row < last; ++row)
            work(row, floats_.data() + piece * floats, pointers_.data() + piece * pointers);
    });
}

// Room for the codes of a layer's input, which then have to be made of every row; false if it needs none.
bool Runner::begin_codes(const Job& job, int rows) {
    Input& input = *job.x;
    if (!job.w->is_int8 || input.is_coded) return false;
    const size_t stride = size_t(fours(job.w->in)) * 4;
    if (input.codes.size() < stride * rows) input.codes.resize(stride * rows);
    if (input.scale.size() < size_t(rows)) {
        input.scale.resize(rows);
        input.zero.resize(rows);
    }
    input.width = job.w->in;
    return input.is_coded = true;
}

void Runner::code_row(Input& input, int row) {
    const size_t stride = size_t(fours(input.width)) * 4;
    kernels_.encode_row(input.x + row * input.stride, input.width, input.codes.data() + row * stride, &input.scale[row],
                        &input.zero[row]);
}

// All at once: pieces are blocks of outputs of any of them.
void Runner::linears(const std::vector<Job>& jobs, int rows) {
    std::vector<Input*> uncoded;
    size_t cost = 0, all_blocks = 0, coding = 0;
    for (const Job& job : jobs) {
        if (begin_codes(job, rows)) {
            uncoded.push_back(job.x);
            coding += kCoded * job.w->in;
        }
        cost += size_t(rows + 1) * job.w->in * job.w->out;  // reading the weights takes as long as a row does
        all_blocks += blocks(job.w->out);
    }
    if (!uncoded.empty())
        each_row(rows, coding, 0, 0, [&](int row, float*, const float**) {
            for (Input* input : uncoded) code_row(*input, row);
        });
    const int tiles = (rows + kRowTile - 1) / kRowTile;
    const int wanted = pieces_of(cost);
    if (wanted == 1 && tiles == 1) {
        for (const Job& job : jobs) compute(job, 0, rows, 0, blocks(job.w->out));
        return;
    }
    const int group = (int(all_blocks) + wanted - 1) / wanted;
    struct Piece {
        const Job* job;
        int first, last;
    };
    std::vector<Piece> pieces;
    for (const Job& job : jobs)
        for (int first = 0; first < blocks(job.w->out); first += group)
            pieces.push_back({&job, first, std::min(first + group, blocks(job.w->out))});
    pool_.run(int(pieces.size()) * tiles, [&](int number) {
        const Piece& piece = pieces[size_t(number) / tiles];
        const Job& job = *piece.job;
        const int row = number % tiles * kRowTile, count = std::min(kRowTile, rows - row);
        compute(job, row, count, piece.first, piece.last);
    });
}

void Runner::normalise(const Norm& norm, float* x, const float* residual, int dim, int rows) {
    each_row(rows, kNormed * dim, 0, 0, [&](int row, float*, const float**) {
        kernels_.norm(x + size_t(row) * dim, residual == nullptr ? nullptr : residual + size_t(row) * dim,
                      norm.weight.data(), norm.bias.data(), dim, norm.epsilon);
    });
}

// x += block(x), with the norm before the block or behind the sum; x is x_.
template <typename Block>
void Runner::sublayer(const Norm& norm, const Side& side, int rows, const Block& block) {
    const size_t size = size_t(rows) * side.dim;
    if (!side.normalize_before) {
        block(x_.data(), y_.data());
        normalise(norm, x_.data(), y_.data(), side.dim, rows);
        return;
    }
    std::memcpy(z_.data(), x_.data(), size * sizeof(float));
    normalise(norm, z_.data(), nullptr, side.dim, rows);
    block(z_.data(), y_.data());
    for (size_t i = 0; i < size; ++i) x_[i] += y_[i];
}

void Runner::self_attention(const Layer& layer, const float* x, int dim, int rows, Memory& memory, float* out) {
    const size_t count = layer.branches.size();
    if (inputs_.size() < 3 * count) inputs_.resize(3 * count);
    if (projected_.size() < count) {
        projected_.resize(count);
        mixed_.resize(count);
        generated_.resize(count);
    }
    const auto input = [&](size_t index, const float* from, size_t stride) {
        inputs_[index].x = from;
        inputs_[index].stride = stride;
        inputs_[index].is_coded = false;
        return &inputs_[index];
    };
    // 1. query, key and value; the convolution's first projection
    std::vector<Job> jobs;
    for (size_t i = 0; i < count; ++i) {
        const Branch& branch = layer.branches[i];
        const Linear& w = branch.is_attention ? branch.attention.input : branch.convolution.linear1;
        if (!branch.is_attention && !branch.convolution.has_linear) continue;
        grow(projected_[i], size_t(rows) * w.out);
        jobs.push_back({&w, input(i, x + branch.first, dim), projected_[i].data(), size_t(w.out), false});
    }
    linears(jobs, rows);
    // 2. what is remembered of it, of which dynamic convolutions make their kernels
    jobs.clear();
    std::vector<char> is_coded(count, 0);
    size_t remembering = kProduct * dim;
    for (size_t i = 0; i < count; ++i) {
        const Branch& branch = layer.branches[i];
        if (branch.is_attention || !branch.convolution.is_dynamic) continue;
        const Linear& w = branch.convolution.generator;
        const float* first = memory.own_input(0, branch);
        const size_t stride = rows > 1 ? size_t(memory.own_input(1, branch) - first) : 0;
        grow(generated_[i], size_t(rows) * w.out);
        jobs.push_back({&w, input(count + i, first, stride), generated_[i].data(), size_t(w.out), false});
        is_coded[i] = begin_codes(jobs.back(), rows);
        if (is_coded[i]) remembering += kCoded * w.in;
    }
    each_row(rows, remembering, 0, 0, [&](int row, float*, const float**) {
        for (size_t i = 0; i < count; ++i) {
            const Branch& branch = layer.branches[i];
            if (branch.is_attention) {
                const Attention& attention = branch.attention;
                const float* from = projected_[i].data() + size_t(row) * attention.input.out;
                float* keys = memory.own_keys(row, branch);
                const size_t step = size_t(attention.padded_dim);
                pad_heads(attention, from + attention.inner(), keys, step);
                pad_heads(attention, from + 2 * attention.inner(), keys + attention.padded(), step);
                continue;
            }
            const Convolution& conv = branch.convolution;
            float* own = memory.own_input(row, branch);
            if (!conv.has_linear) {
                std::memcpy(own, x + size_t(row) * dim + branch.first, sizeof(float) * branch.width);
            } else if (conv.gate) {
                kernels_.gate(projected_[i].data() + size_t(row) * 2 * branch.width, own, branch.width);
            } else {
                std::memcpy(own, projected_[i].data() + size_t(row) * branch.width, sizeof(float) * branch.width);
            }
            if (is_coded[i]) code_row(inputs_[count + i], row);
        }
    });
    // 3. the kernels
    if (!jobs.empty()) linears(jobs, rows);
    // 4. attention and convolution, for the last projections
    jobs.clear();
    is_coded.assign(count, 0);
    size_t cost = 0, floats = 0, pointers = size_t(memory.most_keys());
    for (size_t i = 0; i < count; ++i) {
        const Branch& branch = layer.branches[i];
        const Attention& attention = branch.attention;
        grow(mixed_[i], size_t(rows) * (branch.is_attention ? attention.inner() : branch.width));
        if (branch.is_attention) {
            cost += kProduct * size_t(2 * memory.most_keys()) * attention.padded();
            floats = std::max(floats, size_t(2 * attention.padded() + rounded8(memory.most_keys())));
        } else {
            const size_t size = size_t(branch.convolution.size);
            cost += kProduct * size * branch.width;
            floats = std::max(floats, size * branch.convolution.heads + 8);
            pointers = std::max(pointers, size);
        }
        if (branch.is_attention || branch.convolution.has_linear) {
            const Linear& w = branch.is_attention ? attention.output : branch.convolution.linear2;
            jobs.push_back(
                {&w, input(2 * count + i, mixed_[i].data(), size_t(w.in)), out + branch.first, size_t(dim), false});
            is_coded[i] = begin_codes(jobs.back(), rows);
            if (is_coded[i]) cost += kCoded * w.in;
        }
    }
    each_row(rows, cost, floats, pointers, [&](int row, float* own, const float** found) {
        for (size_t i = 0; i < count; ++i) {
            const Branch& branch = layer.branches[i];
            if (branch.is_attention) {
                const Attention& attention = branch.attention;
                float *query = own, *result = own + attention.padded(), *weights = result + attention.padded();
                const size_t step = size_t(attention.padded_dim);
                pad_heads(attention, projected_[i].data() + size_t(row) * attention.input.out, query, step);
                const int keys = memory.keys(row, branch, found);
                kernels_.attend(query, found, step, attention.padded(), keys, attention.heads, attention.padded_dim,
                                weights, result);
                unpad_heads(attention, result, mixed_[i].data() + size_t(row) * attention.inner());
                if (is_coded[i]) code_row(inputs_[2 * count + i], row);
                continue;
            }
            const Convolution& conv = branch.convolution;
            const float* kernels = conv.kernels.data();
            if (conv.is_dynamic) {
                kernels = generated_[i].data() + size_t(row) * conv.generator.out;
                if (conv.softmax) {
                    // a softmax fills whole vectors: what it writes behind a head, the next head writes over
                    for (int head = 0; head < conv.heads; ++head) {
                        float* place = own + size_t(head) * conv.size;
                        std::memcpy(place, kernels + size_t(head) * conv.size, sizeof(float) * conv.size);
                        kernels_.softmax(place, conv.size);
                    }
                    kernels = own;
                }
            }
            memory.window(row, branch, found);
            float* mixed = mixed_[i].data() + size_t(row) * branch.width;
            kernels_.convolve(found, kernels, conv.heads, conv.size, branch.width / conv.heads, mixed);
            if (!conv.has_linear) {
                std::memcpy(out + size_t(row) * dim + branch.first, mixed, sizeof(float) * branch.width);
            } else if (is_coded[i]) {
                code_row(inputs_[2 * count + i], row);
            }
        }
    });
    // 5. the last projections
    linears(jobs, rows);
}

void Runner::cross_attention(const Layer& layer, const float* x, int dim, int rows, Memory& memory, float* out) {
    const Attention& cross = layer.cross;
    Input query;
    query.x = x;
    query.stride = size_t(dim);
    grow(hidden_, size_t(rows) * cross.inner() * 2);
    float *queries = hidden_.data(), *mixed = queries + size_t(rows) * cross.inner();
    linears({{&cross.input, &query, queries, size_t(cross.inner()), false}}, rows);
    Input last;
    last.x = mixed;
    last.stride = size_t(cross.inner());
    const Job job{&cross.output, &last, out, size_t(dim), false};
    const bool is_coded = begin_codes(job, rows);
    const int most = memory.most_cross();
    each_row(rows, kProduct * 2 * most * cross.padded() + kCoded * cross.inner(), size_t(2 * cross.padded() + rounded8(most)), size_t(most),
             [&](int row, float* own, const float** found) {
                 float *padded = own, *result = own + cross.padded(), *weights = result + cross.padded();
                 pad_heads(cross, queries + size_t(row) * cross.inner(), padded, size_t(cross.padded_dim));
                 size_t head_offset = 0;
                 const int keys = memory.cross(row, cross, found, &head_offset);
                 kernels_.attend(padded, found, head_offset, size_t(cross.padded_dim), keys, cross.heads,
                                 cross.padded_dim, weights, result);
                 unpad_heads(cross, result, mixed + size_t(row) * cross.inner());
                 if (is_coded) code_row(last, row);
             });
    linears({job}, rows);
}

void Runner::feed_forward(const Layer& layer, const float* x, int dim, int rows, float* out) {
    const int width = layer.fc1.out;
    Input first, second;
    first.x = x;
    first.stride = size_t(dim);
    grow(hidden_, size_t(rows) * width);
    linears({{&layer.fc1, &first, hidden_.data(), size_t(width), layer.activation == Activation::kRelu}}, rows);
    if (layer.activation == Activation::kTanh || layer.activation == Activation::kSigmoid) {
        for (size_t i = 0; i < size_t(rows) * width; ++i)
            hidden_[i] = layer.activation == Activation::kTanh ? std::tanh(hidden_[i])
                                                               : 1.0f / (1.0f + std::exp(-hidden_[i]));
    }
    second.x = hidden_.data();
    second.stride = size_t(width);
    linears({{&layer.fc2, &second, out, size_t(dim), false}}, rows);
}

void Runner::layer(const Layer& layer, const Side& side, int rows, Memory& memory) {
    sublayer(layer.norm, side, rows,
             [&](const float* x, float* out) { self_attention(layer, x, side.dim, rows, memory, out); });
    if (layer.cross_norm)
        sublayer(layer.cross_norm, side, rows,
                 [&](const float* x, float* out) { cross_attention(layer, x, side.dim, rows, memory, out); });
    sublayer(layer.final_norm, side, rows,
             [&](const float* x, float* out) { feed_forward(layer, x, side.dim, rows, out); });
}

std::unique_ptr<State> Runner::encode(const int64_t* source, int batch, int length, float* states) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Pool::Watch watch(pool_, Pool::kEncode, batch * length);
    Side& side = model_->encoder;
    auto state = std::make_unique<State>();
    state->model = model_.get();
    state->projection = projection_;
    state->words = words_;
    int rows = 0;
    for (int b = 0; b < batch; ++b) {
        const int64_t* row = source + size_t(b) * length;
        int padding = 0;
        while (padding < length && row[padding] == model_->pad) ++padding;
        if (padding == length) throw Problem("sentence " + std::to_string(b) + " of the batch has no token");
        for (int s = padding; s < length; ++s) {
            if (row[s] == model_->pad) throw Problem("padding must stand in front of a sentence, not inside it");
            if (row[s] < 0 || row[s] >= side.embedding->count)
                throw Problem("token " + std::to_string(row[s]) + " of a vocabulary of " +
                              std::to_string(side.embedding->count));
        }
        state->sentences.push_back({rows, length - padding, padding});
        state->alive.push_back(b);
        rows += length - padding;
    }
    const size_t size = size_t(rows) * side.dim;
    for (auto* buffer : {&x_, &y_, &z_}) grow(*buffer, size);
    for (int b = 0; b < batch; ++b) {
        const State::Sentence& sentence = state->sentences[b];
        for (int s = 0; s < sentence.length; ++s) {
            float* x = x_.data() + size_t(sentence.first_row + s) * side.dim;
            side.embedding->row(source[size_t(b) * length + sentence.padding + s], x);
            side.positions.add(s, x);
        }
    }
    if (side.embedding_norm) normalise(side.embedding_norm, x_.data(), nullptr, side.dim, rows);
    TokenMemory memory(*state, rows, *spare_);
    for (const Layer& one : side.layers) {
        memory.prepare(one);
        layer(one, side, rows, memory);
    }
    if (side.final_norm) normalise(side.final_norm, x_.data(), nullptr, side.dim, rows);
    if (states != nullptr) {
        std::memset(states, 0, sizeof(float) * batch * length * side.dim);
        for (int b = 0; b < batch; ++b) {
            const State::Sentence& sentence = state->sentences[b];
            std::memcpy(states + (size_t(b) * length + sentence.padding) * side.dim,
                        x_.data() + size_t(sentence.first_row) * side.dim,
                        sizeof(float) * sentence.length * side.dim);
        }
    }
    Input input;
    input.x = x_.data();
    input.stride = size_t(side.dim);
    for (const Layer& one : model_->decoder.layers) {
        const Attention& cross = one.cross;
        Spare::Block found = spare_->take(size_t(rows) * 2 * cross.padded());
        grow(hidden_, size_t(rows) * cross.inner() * 2);
        float *keys = hidden_.data(), *values = keys + size_t(rows) * cross.inner();
        linears({{&cross.keys, &input, keys, size_t(cross.inner()), false},
                 {&cross.values, &input, values, size_t(cross.inner()), false}},
                rows);
        for (const State::Sentence& sentence : state->sentences) {
            const size_t pair = 2 * size_t(cross.padded_dim), step = size_t(sentence.length) * pair;
            float* place = found.get() + size_t(sentence.first_row) * 2 * cross.padded();
            for (int s = 0; s < sentence.length; ++s, place += pair) {
                const size_t from = size_t(sentence.first_row + s) * cross.inner();
                pad_heads(cross, keys + from, place, step);
                pad_heads(cross, values + from, place + cross.padded_dim, step);
            }
        }
        state->cross.push_back(std::move(found));
    }
    state->rows = batch;
    state->windows.resize(size_t(model_->longest_kernel));
    return state;
}

void Runner::step(State& state, const int64_t* tokens, const int64_t* order, const int64_t* sentences, int batch,
                  int beams, int count, float* scores, int64_t* found, float* end_scores) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Pool::Watch watch(pool_, Pool::kStep, batch * beams);
    Side& side = model_->decoder;
    const Linear& projection = state.projection ? *state.projection : model_->output;
    if (state.model != model_.get()) throw Problem("the state is another engine's");
    if (state.is_broken) throw Problem("an earlier step of this batch failed");
    if (count < 1 || count > projection.out)
        throw Problem(std::to_string(count) + " candidates of " + std::to_string(projection.out) + " words");
    std::vector<int> alive;
    if (sentences == nullptr) {
        alive = state.alive;
        if (batch != int(alive.size()))
            throw Problem(std::to_string(batch) + " sentences, " + std::to_string(alive.size()) + " are left");
    } else {
        for (int b = 0; b < batch; ++b) {
            if (sentences[b] < 0 || sentences[b] >= int64_t(state.alive.size()))
                throw Problem("sentence " + std::to_string(sentences[b]) + " of " + std::to_string(state.alive.size()));
            alive.push_back(state.alive[size_t(sentences[b])]);
        }
    }
    const int rows = batch * beams, before = state.steps, now = before + 1;
    std::vector<int> history(size_t(rows) * now);
    for (int row = 0; row < rows; ++row) {
        if (order[row] < 0 || order[row] >= state.rows)
            throw Problem("row " + std::to_string(order[row]) + " of " + std::to_string(state.rows));
        if (tokens[row] < 0 || tokens[row] >= side.embedding->count)
            throw Problem("token " + std::to_string(tokens[row]) + " of a vocabulary of " +
                          std::to_string(side.embedding->count));
        const int* old = state.history.data() + size_t(order[row]) * before;
        std::copy(old, old + before, history.begin() + size_t(row) * now);
        history[size_t(row) * now + before] = row;
    }
    state.is_broken = true;
    state.keys.push_back(spare_->take(size_t(rows) * model_->key_floats));
    state.windows[size_t(before % model_->longest_kernel)] = spare_->take(size_t(rows) * model_->conv_floats);
    for (auto* buffer : {&x_, &y_, &z_}) grow(*buffer, size_t(rows) * side.dim);
    for (int row = 0; row < rows; ++row) {
        float* x = x_.data() + size_t(row) * side.dim;
        side.embedding->row(tokens[row], x);
        side.positions.add(before, x);
    }
    if (side.embedding_norm) normalise(side.embedding_norm, x_.data(), nullptr, side.dim, rows);
    StepMemory memory(state, *model_, history, alive, beams);
    for (size_t i = 0; i < side.layers.size(); ++i) {
        memory.prepare(int(i));
        layer(side.layers[i], side, rows, memory);
    }
    if (side.final_norm) normalise(side.final_norm, x_.data(), nullptr, side.dim, rows);
    choose(projection, state, rows, count, scores, found, end_scores);
    state.history = std::move(history);
    state.alive = std::move(alive);
    state.rows = rows;
    state.steps = now;
    state.is_broken = false;
}

// A block of a layer's outputs, of some rows.
void Runner::compute(const Job& job, int first_row, int rows, int first, int last) {
    const PackedView view = job.w->view();
    float* y = job.y + first_row * job.y_stride;
    if (job.w->is_int8) {
        const size_t stride = size_t(fours(job.w->in)) * 4;
        const CodedRows x{job.x->codes.data() + first_row * stride, stride, job.x->scale.data() + first_row,
                          job.x->zero.data() + first_row};
        kernels_.linear_int8(view, x, rows, first, last, job.relu, y, job.y_stride);
    } else {
        kernels_.linear_fp32(view, job.x->x + first_row * job.x->stride, job.x->stride, rows, first, last, job.relu, y,
                             job.y_stride);
    }
}

namespace {

// The likeliest words of a row, by many threads at once: who finds one likelier than the last of them puts it in.
class Likeliest {
  public:
    void begin(int count) {
        count_ = size_t(count);
        found_.clear();
        found_.reserve(count_);
        bound_.store(-std::numeric_limits<float>::infinity(), std::memory_order_relaxed);
    }

    // What is not above it is not among them.
    float bound() const { return bound_.load(std::memory_order_relaxed); }

    // Those of x[0], x[kGroups], ... that are above the threshold; first: the word of x[0].
    void add(const float* x, int n, float threshold, int first) {
        while (is_taken_.test_and_set(std::memory_order_acquire)) {
        }
        for (int i = 0; i < n; i += kGroups) {
            if (!(x[i] > threshold)) continue;
            const Candidate candidate{x[i], first + i};
            if (found_.size() < count_) {
                found_.push_back(candidate);
            } else if (is_better(candidate, found_.back())) {
                found_.back() = candidate;
            } else {
                continue;
            }
            for (size_t place = found_.size() - 1; place > 0 && is_better(candidate, found_[place - 1]); --place)
                std::swap(found_[place], found_[place - 1]);
        }
        // one below: of equal words elsewhere, the first is wanted
        if (found_.size() == count_)
            bound_.store(std::nextafter(found_.back().first, -std::numeric_limits<float>::infinity()),
                         std::memory_order_relaxed);
        is_taken_.clear(std::memory_order_release);
    }

    const std::vector<Candidate>& found() const { return found_; }

  private:
    size_t count_ = 0;
    std::vector<Candidate> found_;
    std::atomic<float> bound_{0};
    std::atomic_flag is_taken_ = ATOMIC_FLAG_INIT;
};

}  // namespace

// The likeliest words of each row of x_, by log-probability; of equal ones the first. Who computes the logits of some
// words looks for the likeliest of them at once, while they are in its cache.
void Runner::choose(const Linear& projection, const State& state, int rows, int count, float* scores, int64_t* found,
                    float* end_scores) {
    const int width = projection.out, chunks = (width + kChunk - 1) / kChunk;
    const bool is_sorted = count <= kMostSorted;
    constexpr float kNone = -std::numeric_limits<float>::infinity();
    struct Part {
        float largest, sum;
    };
    std::vector<Part> parts(size_t(rows) * chunks);
    const std::unique_ptr<Likeliest[]> likeliest(new Likeliest[size_t(is_sorted ? rows : 0)]);
    for (int row = 0; is_sorted && row < rows; ++row) likeliest[size_t(row)].begin(count);
    Input input;
    input.x = x_.data();
    input.stride = size_t(model_->decoder.dim);
    grow(hidden_, size_t(rows) * width);
    float* const logits = hidden_.data();
    const Job job{&projection, &input, logits, size_t(width), false};
    if (begin_codes(job, rows))
        each_row(rows, kCoded * projection.in, 0, 0,
                 [&](int row, float*, const float**) { code_row(input, row); });
    const auto look = [&](int row, int chunk, const int8_t* next) {
        Part& part = parts[size_t(row) * chunks + chunk];
        const int first = chunk * kChunk, size = std::min(kChunk, width - first);
        const float* x = logits + size_t(row) * width + first;
        float maxima[kGroups];
        kernels_.maxima(x, size, maxima);
        part.largest = *std::max_element(maxima, maxima + kGroups);
        part.sum = kernels_.exp_sum(x, size, part.largest, next);
        if (!is_sorted) return;
        Likeliest& own = likeliest[size_t(row)];
        float threshold = own.bound();
        if (threshold == kNone && count <= std::min(kGroups, size)) {
            // so many words are at least as likely as that
            float falling[kGroups];
            std::copy(maxima, maxima + kGroups, falling);
            std::nth_element(falling, falling + count - 1, falling + kGroups, std::greater<float>());
            threshold = std::nextafter(falling[count - 1], kNone);
        }
        for (int group = 0; group < kGroups; ++group) {
            if (!(maxima[group] > threshold)) continue;
            own.add(x + group, size - group, threshold, first + group);
            threshold = std::max(threshold, own.bound());
        }
    };
    const int tiles = (rows + kRowTile - 1) / kRowTile;
    pool_.run(chunks * tiles, [&](int number) {
        const int chunk = number / tiles, row = number % tiles * kRowTile, some = std::min(kRowTile, rows - row);
        const int first = chunk * (kChunk / kBlock), last = std::min(first + kChunk / kBlock, blocks(width));
        compute(job, row, some, first, last);
        for (int r = row; r < row + some; ++r) look(r, chunk, weights_ahead(projection, last, r, rows));
    });
    int end = model_->end;
    if (state.words) end = int(std::lower_bound(state.words->begin(), state.words->end(), end) - state.words->begin());
    std::vector<Candidate> all;
    for (int row = 0; row < rows; ++row) {
        const Part* own = parts.data() + size_t(row) * chunks;
        const float* x = logits + size_t(row) * width;
        float largest = own[0].largest, sum = 0.0f;
        for (int i = 1; i < chunks; ++i) largest = std::max(largest, own[i].largest);
        for (int i = 0; i < chunks; ++i) sum += own[i].sum * std::exp(own[i].largest - largest);
        const float normaliser = largest + std::log(sum);
        if (!is_sorted) {
            all.clear();
            for (int i = 0; i < width; ++i) all.emplace_back(x[i], i);
            std::partial_sort(all.begin(), all.begin() + count, all.end(), is_better);
        }
        const std::vector<Candidate>& best = is_sorted ? likeliest[size_t(row)].found() : all;
        if (!std::isfinite(normaliser) || int(best.size()) < count)
            throw Problem("log-probabilities are not finite numbers");
        for (int i = 0; i < count; ++i) {
            scores[size_t(row) * count + i] = best[size_t(i)].first - normaliser;
            const int word = best[size_t(i)].second;
            found[size_t(row) * count + i] = state.words ? (*state.words)[size_t(word)] : word;
        }
        end_scores[row] = x[end] - normaliser;
    }
}

// Weights that a row's exponentials bring nearer meanwhile: of the first tile of the next chunk, which begins at
// `block`. Null where many rows, or several threads, keep the memory less idle.
const int8_t* Runner::weights_ahead(const Linear& w, int block, int row, int rows) const {
    if (!w.is_int8 || rows > kFewRows || pool_.sharing() > 1) return nullptr;
    const int left = std::min(kChunk / kBlock, blocks(w.out) - block), runs = kernels_.runs(rows);
    const int place = row % runs * (left / runs) + row / runs;
    return place < left ? w.codes.get() + size_t(block + place) * fours(w.in) * 64 : nullptr;
}

void Runner::restrict_to(const int64_t* ids, int count) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (ids == nullptr) {
        projection_ = nullptr;
        words_ = nullptr;
        return;
    }
    auto words = std::make_shared<std::vector<int64_t>>(ids, ids + count);
    bool has_end = false;
    for (int i = 0; i < count; ++i) {
        if (ids[i] < 0 || ids[i] >= model_->output.out || (i > 0 && ids[i] <= ids[i - 1]))
            throw Problem("the words allowed must rise, within a vocabulary of " + std::to_string(model_->output.out));
        has_end = has_end || ids[i] == model_->end;
    }
    if (!has_end) throw Problem("the words allowed do not hold the end of a sentence");
    projection_ = model_->output.rows(ids, count);
    words_ = std::move(words);
}

}  // namespace lt
