#include "model.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

namespace lt {

namespace {

constexpr int64_t kPlan = 0x4c54504c414e31;  // what a plan begins with
constexpr int64_t kMostRows = 1 << 24, kMostWidth = 1 << 16, kMostLayers = 256;

// Takes a plan's numbers one after another.
class Reader {
  public:
    Reader(const int64_t* plan, size_t plan_size, const uint8_t* file, size_t file_size)
        : plan_(plan), end_(plan + plan_size), file_(file), file_size_(file_size) {}

    int64_t next() {
        if (plan_ == end_) throw Problem("the plan ends too early");
        return *plan_++;
    }

    int number(const char* what, int64_t least, int64_t most) {
        const int64_t value = next();
        if (value < least || value > most)
            throw Problem(std::string(what) + " " + std::to_string(value) + " is not in " + std::to_string(least) +
                          " to " + std::to_string(most));
        return int(value);
    }

    bool flag(const char* what) { return number(what, 0, 1) == 1; }

    float real(const char* what) {
        const int64_t bits = next();
        double value;
        std::memcpy(&value, &bits, sizeof value);
        if (!std::isfinite(value)) throw Problem(std::string(what) + " is no finite number");
        return float(value);
    }

    bool at_end() const { return plan_ == end_; }

    Arena arena;  // of the weights read

    // Where `count` elements of `size` bytes begin; null if the plan says -1.
    const uint8_t* tensor(const char* what, size_t count, size_t size) {
        const int64_t offset = next();
        if (offset == -1) return nullptr;
        if (offset < 0 || offset % int64_t(size) != 0 || uint64_t(offset) > file_size_ ||
            (file_size_ - size_t(offset)) / size < count)
            throw Problem("the weights end before " + std::string(what) + " does (" + std::to_string(count * size) +
                          " bytes at " + std::to_string(offset) + " of " + std::to_string(file_size_) + ")");
        return file_ + offset;
    }

    // Raises: Problem if it is not there, or holds what is no finite number.
    std::vector<float> floats(const char* what, size_t count, size_t room = 0) {
        std::vector<float> found = maybe_floats(what, count, room);
        if (found.empty() && count > 0) throw Problem(std::string(what) + " is missing");
        return found;
    }

    std::vector<float> maybe_floats(const char* what, size_t count, size_t room = 0) {
        const uint8_t* where = tensor(what, count, sizeof(float));
        if (where == nullptr) return {};
        std::vector<float> found(room > count ? room : count, 0.0f);
        if (count > 0) std::memcpy(found.data(), where, count * sizeof(float));
        for (const float value : found)
            if (!std::isfinite(value)) throw Problem(std::string(what) + " holds numbers that are not finite");
        return found;
    }

  private:
    const int64_t* plan_;
    const int64_t* end_;
    const uint8_t* file_;
    size_t file_size_;
};

// (out, in) or (in, out), int8 or fp32 -> packed; then its scales and its bias.
Linear read_linear(Reader& plan, const char* what, int in, int out) {
    Arena& arena = plan.arena;
    Linear w;
    w.in = in;
    w.out = out;
    w.is_int8 = plan.flag("int8");
    const bool is_transposed = plan.flag("layout");  // (in, out)
    const size_t size = size_t(in) * out, room = size_t(blocks(out)) * kBlock;
    const size_t out_step = is_transposed ? 1 : in, in_step = is_transposed ? out : 1;
    if (w.is_int8) {
        const auto* source = reinterpret_cast<const int8_t*>(plan.tensor(what, size, 1));
        if (source == nullptr) throw Problem(std::string(what) + " is missing");
        w.codes = arena.take<int8_t>(room * fours(in) * 4);
        w.sums.assign(room, 0);
        for (int o = 0; o < out; ++o) {
            int8_t* block = w.codes.get() + size_t(o / kBlock) * fours(in) * 64 + o % kBlock * 4;
            for (int i = 0; i < in; ++i) {
                const int8_t code = source[o * out_step + i * in_step];
                if (code > kMostCode || code < -kMostCode)
                    throw Problem(std::string(what) + " holds codes beyond " + std::to_string(kMostCode));
                block[i / 4 * 64 + i % 4] = code;
                w.sums[o] += code;
            }
        }
        w.scales = plan.floats(what, out, room);
    } else {
        const uint8_t* source = plan.tensor(what, size, sizeof(float));
        if (source == nullptr) throw Problem(std::string(what) + " is missing");
        w.values = arena.take<float>(room * in);
        for (int o = 0; o < out; ++o) {
            float* block = w.values.get() + size_t(o / kBlock) * in * kBlock + o % kBlock;
            for (int i = 0; i < in; ++i) {
                float value;
                std::memcpy(&value, source + (o * out_step + i * in_step) * sizeof(float), sizeof value);
                if (!std::isfinite(value)) throw Problem(std::string(what) + " holds numbers that are not finite");
                block[size_t(i) * kBlock] = value;
            }
        }
        if (plan.next() != -1) throw Problem(std::string(what) + " has scales, but no codes");
    }
    w.bias = plan.maybe_floats(what, out, room);
    return w;
}

Norm read_norm(Reader& plan, const char* what, int dim, float epsilon, bool is_optional = false) {
    Norm norm;
    norm.weight = is_optional ? plan.maybe_floats(what, dim) : plan.floats(what, dim);
    norm.bias = norm.weight.empty() ? plan.maybe_floats(what, dim) : plan.floats(what, dim);
    norm.epsilon = epsilon;
    return norm;
}

Positions read_positions(Reader& plan, int dim) {
    Positions positions;
    positions.dim = dim;
    positions.kind = plan.number("kind of positions", 0, 2);
    positions.offset = plan.number("offset of positions", 0, 1 << 20);
    positions.rows = plan.number("rows of positions", 0, kMostRows);
    if (positions.kind == 1) {
        if (dim % 2 != 0) throw Problem("sinusoids of an odd number of channels");
        positions.frequencies = plan.floats("frequencies", dim / 2);
    } else if (positions.kind == 2) {
        positions.table = plan.floats("positions", size_t(positions.rows) * dim);
    }
    return positions;
}

Attention read_heads(Reader& plan) {
    Attention attention;
    attention.heads = plan.number("heads", 1, kMostWidth);
    const int inner = plan.number("width of an attention", 1, kMostWidth);
    if (inner % attention.heads != 0) throw Problem("heads do not divide the width of an attention");
    attention.head_dim = inner / attention.heads;
    attention.padded_dim = rounded8(attention.head_dim);
    return attention;
}

Convolution read_convolution(Reader& plan, int width, const Kernels& kernels) {
    Convolution branch;
    branch.heads = plan.number("heads", 1, kMostWidth);
    branch.size = plan.number("kernel size", 1, 4096);
    if (width % branch.heads != 0) throw Problem("heads do not divide the width of a convolution");
    branch.gate = plan.flag("gate");
    branch.softmax = plan.flag("softmax");
    branch.mask_after_gate = plan.flag("mask");
    branch.has_linear = plan.flag("linear");
    branch.is_dynamic = plan.flag("dynamic");
    if (branch.gate && !branch.has_linear) throw Problem("a gate without a linear layer");
    if (branch.has_linear) {
        branch.linear1 = read_linear(plan, "linear1", width, branch.gate ? 2 * width : width);
        branch.linear2 = read_linear(plan, "linear2", width, width);
    }
    if (branch.is_dynamic) {
        branch.generator = read_linear(plan, "generator", width, branch.heads * branch.size);
    } else {
        branch.kernels = plan.floats("kernels", size_t(branch.heads) * branch.size);
    }
    if (!branch.mask_after_gate && branch.has_linear && !branch.linear1.bias.empty()) {
        std::vector<float> projected(branch.linear1.bias.begin(), branch.linear1.bias.begin() + branch.linear1.out);
        branch.edge.assign(width, 0.0f);
        if (branch.gate) {
            kernels.gate(projected.data(), branch.edge.data(), width);
        } else {
            branch.edge = projected;
        }
    }
    return branch;
}

Layer read_layer(Reader& plan, int dim, float epsilon, const Side* memory, const Kernels& kernels) {
    Layer layer;
    const int count = plan.number("branches", 1, 64);
    int first = 0;
    for (int i = 0; i < count; ++i) {
        Branch branch;
        branch.is_attention = plan.flag("kind of a branch");
        branch.width = plan.number("width of a branch", 1, dim - first);
        branch.first = first;
        first += branch.width;
        if (branch.is_attention) {
            branch.attention = read_heads(plan);
            branch.attention.input = read_linear(plan, "qkv", branch.width, 3 * branch.attention.inner());
            branch.attention.output = read_linear(plan, "out", branch.attention.inner(), branch.width);
        } else {
            branch.convolution = read_convolution(plan, branch.width, kernels);
            if (memory == nullptr && branch.convolution.size % 2 == 0) throw Problem("an encoder's kernel of even size");
        }
        layer.branches.push_back(std::move(branch));
    }
    if (first != dim) throw Problem("the branches have " + std::to_string(first) + " of " + std::to_string(dim) + " channels");
    layer.norm = read_norm(plan, "norm", dim, epsilon);
    if (memory != nullptr) {
        layer.cross_norm = read_norm(plan, "cross_norm", dim, epsilon);
        layer.cross = read_heads(plan);
        layer.cross.input = read_linear(plan, "cross query", dim, layer.cross.inner());
        layer.cross.keys = read_linear(plan, "cross keys", memory->dim, layer.cross.inner());
        layer.cross.values = read_linear(plan, "cross values", memory->dim, layer.cross.inner());
        layer.cross.output = read_linear(plan, "cross out", layer.cross.inner(), dim);
    }
    layer.final_norm = read_norm(plan, "final_norm", dim, epsilon);
    const int hidden = plan.number("feed-forward width", 1, kMostWidth);
    layer.fc1 = read_linear(plan, "fc1", dim, hidden);
    layer.fc2 = read_linear(plan, "fc2", hidden, dim);
    layer.activation = Activation(plan.number("activation", 0, 3));
    return layer;
}

Side read_side(Reader& plan, int dim, const Side* memory, const Kernels& kernels) {
    Side side;
    side.dim = dim;
    side.normalize_before = plan.flag("pre-norm");
    const float epsilon = plan.real("epsilon");
    side.positions = read_positions(plan, dim);
    side.embedding_norm = read_norm(plan, "embedding_norm", dim, epsilon, true);
    const int layers = plan.number("layers", 0, kMostLayers);
    for (int i = 0; i < layers; ++i) side.layers.push_back(read_layer(plan, dim, epsilon, memory, kernels));
    side.final_norm = read_norm(plan, "norm", dim, epsilon, true);
    return side;
}

std::unique_ptr<Embedding> read_embedding(Reader& plan, int count, int dim, const Linear* tied) {
    auto embedding = std::make_unique<Embedding>();
    embedding->count = count;
    embedding->dim = dim;
    embedding->scale = plan.real("scale of an embedding");
    const bool is_int8 = plan.flag("int8"), is_tied = plan.flag("tied");
    const size_t size = size_t(count) * dim;
    if (is_int8) embedding->row_scales = plan.floats("scales of an embedding", count);
    if (is_tied) {
        if (tied == nullptr || tied->out != count || tied->in != dim || tied->is_int8 != is_int8)
            throw Problem("an embedding is not the output it is said to be");
        embedding->tied = tied;
    } else if (is_int8) {
        const uint8_t* codes = plan.tensor("embedding", size, 1);
        if (codes == nullptr) throw Problem("the embedding is missing");
        embedding->codes.resize(size);
        std::memcpy(embedding->codes.data(), codes, size);
    } else {
        embedding->values = plan.floats("embedding", size);
    }
    return embedding;
}

size_t bytes_of(const Layer& layer) {
    size_t bytes = layer.cross.input.bytes() + layer.cross.output.bytes() + layer.fc1.bytes() + layer.fc2.bytes();
    for (const Branch& branch : layer.branches) {
        for (const Linear* w : {&branch.attention.input, &branch.attention.output, &branch.convolution.linear1,
                                &branch.convolution.linear2, &branch.convolution.generator})
            bytes += w->bytes();
    }
    return bytes;
}

}  // namespace

void Free::operator()(void* p) const { std::free(p); }

template <typename T>
std::unique_ptr<T[], Free> zeroed(size_t count) {
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64 + 64;
    void* memory = std::aligned_alloc(64, bytes);
    if (memory == nullptr) throw std::bad_alloc();
    std::memset(memory, 0, bytes);
    return std::unique_ptr<T[], Free>(static_cast<T*>(memory));
}

std::shared_ptr<uint8_t[]> Arena::bytes(size_t count) {
    constexpr size_t kPage = 2 << 20;   // of the large kind
    constexpr size_t kChunk = 8 << 20;  // of small pieces
    count = (count + 63) / 64 * 64;
    if (room_ - used_ < count) {
        room_ = (std::max(count, std::min(kChunk, room_ * 2)) + kPage - 1) / kPage * kPage;
        void* memory = std::aligned_alloc(kPage, room_);
        if (memory == nullptr) throw std::bad_alloc();
        chunk_ = std::shared_ptr<uint8_t[]>(static_cast<uint8_t*>(memory), Free());
        used_ = 0;
#if defined(__linux__)
        madvise(memory, room_, MADV_HUGEPAGE);  // its failure costs time alone
#endif
    }
    uint8_t* const where = chunk_.get() + used_;
    std::memset(where, 0, count);
    used_ += count;
    return std::shared_ptr<uint8_t[]>(chunk_, where);
}

template std::unique_ptr<float[], Free> zeroed<float>(size_t);
template std::unique_ptr<int8_t[], Free> zeroed<int8_t>(size_t);

size_t Linear::bytes() const {
    if (in == 0) return 0;
    const size_t room = size_t(blocks(out)) * kBlock;
    return is_int8 ? room * fours(in) * 4 : room * in * sizeof(float);
}

std::shared_ptr<Linear> Linear::rows(const int64_t* ids, int count) const {
    auto chosen = std::make_shared<Linear>();
    chosen->in = in;
    chosen->out = count;
    chosen->is_int8 = is_int8;
    const size_t room = size_t(blocks(count)) * kBlock;
    if (is_int8) {
        const size_t block = size_t(fours(in)) * 64;
        chosen->codes = Arena().take<int8_t>(blocks(count) * block);
        chosen->sums.assign(room, 0);
        chosen->scales.assign(room, 0.0f);
        for (int o = 0; o < count; ++o) {
            const int8_t* from = codes.get() + size_t(ids[o] / kBlock) * block + ids[o] % kBlock * 4;
            int8_t* to = chosen->codes.get() + size_t(o / kBlock) * block + o % kBlock * 4;
            for (int i = 0; i < fours(in); ++i) std::memcpy(to + i * 64, from + i * 64, 4);
            chosen->sums[o] = sums[size_t(ids[o])];
            chosen->scales[o] = scales[size_t(ids[o])];
        }
    } else {
        const size_t block = size_t(in) * kBlock;
        chosen->values = Arena().take<float>(blocks(count) * block);
        for (int o = 0; o < count; ++o) {
            const float* from = values.get() + size_t(ids[o] / kBlock) * block + ids[o] % kBlock;
            float* to = chosen->values.get() + size_t(o / kBlock) * block + o % kBlock;
            for (int i = 0; i < in; ++i) to[size_t(i) * kBlock] = from[size_t(i) * kBlock];
        }
    }
    if (!bias.empty()) {
        chosen->bias.assign(room, 0.0f);
        for (int o = 0; o < count; ++o) chosen->bias[o] = bias[size_t(ids[o])];
    }
    return chosen;
}

void Embedding::row(int64_t id, float* out) const {
    const size_t row = size_t(id);
    const float factor = row_scales.empty() ? scale : row_scales[row];
    if (tied != nullptr && tied->is_int8) {
        const int8_t* codes = tied->codes.get() + row / kBlock * fours(dim) * 64 + row % kBlock * 4;
        for (int i = 0; i < dim; ++i) out[i] = float(codes[i / 4 * 64 + i % 4]) * factor;
    } else if (tied != nullptr) {
        const float* values = tied->values.get() + row / kBlock * dim * kBlock + row % kBlock;
        for (int i = 0; i < dim; ++i) out[i] = values[size_t(i) * kBlock] * factor;
    } else if (!codes.empty()) {
        for (int i = 0; i < dim; ++i) out[i] = float(codes[row * dim + i]) * factor;
    } else {
        for (int i = 0; i < dim; ++i) out[i] = values[row * dim + i] * factor;
    }
}

void Positions::add(int position, float* x) {
    const int place = position + offset;
    if (kind == 1) {
        const int half = dim / 2;
        const auto sinusoid = [&](int at, float* to) {
            for (int i = 0; i < half; ++i) {
                const float angle = float(at + offset) * frequencies[size_t(i)];
                to[i] += std::sin(angle);
                to[half + i] += std::cos(angle);
            }
        };
        if (position >= kKept) return sinusoid(position, x);
        for (int next = int(kept_.size()) / dim; next <= position; ++next) {
            kept_.resize(size_t(next + 1) * size_t(dim));
            sinusoid(next, kept_.data() + size_t(next) * size_t(dim));
        }
        const float* own = kept_.data() + size_t(position) * size_t(dim);
        for (int i = 0; i < dim; ++i) x[i] += own[i];
    } else if (kind == 2) {
        if (place >= rows) throw Problem("position " + std::to_string(place) + " of a table of " + std::to_string(rows));
        for (int i = 0; i < dim; ++i) x[i] += table[size_t(place) * dim + i];
    }
}

size_t Model::step_bytes() const {
    size_t bytes = output.bytes();
    for (const Layer& layer : decoder.layers) bytes += bytes_of(layer);
    return bytes;
}

std::unique_ptr<Model> read_model(const int64_t* plan_begin, size_t plan_size, const uint8_t* file, size_t file_size,
                                  const Kernels& kernels) {
    Reader plan(plan_begin, plan_size, file, file_size);
    if (plan.next() != kPlan) throw Problem("the plan is of another version");
    auto model = std::make_unique<Model>();
    const int source_words = plan.number("source vocabulary", 1, kMostRows);
    const int target_words = plan.number("target vocabulary", 1, kMostRows);
    model->pad = plan.number("padding", 0, (source_words < target_words ? source_words : target_words) - 1);
    model->end = plan.number("end of a sentence", 0, target_words - 1);
    const int source_dim = plan.number("encoder width", 1, kMostWidth);
    const int target_dim = plan.number("decoder width", 1, kMostWidth);
    model->output = read_linear(plan, "output", target_dim, target_words);
    model->target_embedding = read_embedding(plan, target_words, target_dim, &model->output);
    const bool is_shared = plan.flag("one embedding");
    if (is_shared) {
        if (source_words != target_words || source_dim != target_dim) throw Problem("one embedding of two sizes");
    } else {
        model->source_embedding = read_embedding(plan, source_words, source_dim, nullptr);
    }
    model->encoder = read_side(plan, source_dim, nullptr, kernels);
    model->decoder = read_side(plan, target_dim, &model->encoder, kernels);
    model->encoder.embedding = is_shared ? model->target_embedding.get() : model->source_embedding.get();
    model->decoder.embedding = model->target_embedding.get();
    if (!plan.at_end()) throw Problem("the plan goes on behind its end");
    for (Layer& layer : model->decoder.layers) {
        for (Branch& branch : layer.branches) {
            if (branch.is_attention) {
                branch.place = model->key_floats;
                model->key_floats += 2 * branch.attention.padded();
            } else {
                branch.place = model->conv_floats;
                model->conv_floats += rounded8(branch.width);
                if (branch.convolution.size > model->longest_kernel) model->longest_kernel = branch.convolution.size;
            }
        }
    }
    return model;
}

}  // namespace lt
