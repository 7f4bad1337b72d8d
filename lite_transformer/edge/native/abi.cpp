// The engine for callers in C: see `library.py`. Every function that can fail gives 0 or null and writes a line.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include "kernels.h"
#include "machine.h"
#include "model.h"
#include "runner.h"
#include "search.h"

#define LT_API extern "C" __attribute__((visibility("default")))

namespace {

using lt::Kernels;
using lt::Problem;

// What this processor has, the fastest first.
const Kernels* nth_kernels(int index) {
    const Kernels* const all[] = {lt::avx512vnni_kernels(), lt::avxvnni_kernels(), lt::avx2_kernels(),
                                  lt::dotprod_kernels(),    lt::neon_kernels(),    lt::generic_kernels()};
    for (const Kernels* kernels : all)
        if (kernels != nullptr && index-- == 0) return kernels;
    return nullptr;
}

const Kernels& named_kernels(const char* name) {
    if (name == nullptr) return *nth_kernels(0);
    for (int i = 0; nth_kernels(i) != nullptr; ++i)
        if (std::strcmp(nth_kernels(i)->name, name) == 0) return *nth_kernels(i);
    throw Problem("this processor has no " + std::string(name));
}

template <typename Body>
bool guarded(char* error, int room, const Body& body) {
    try {
        body();
        return true;
    } catch (const std::bad_alloc&) {
        std::snprintf(error, size_t(room), "too little memory");
    } catch (const std::exception& problem) {
        std::snprintf(error, size_t(room), "%s", problem.what());
    }
    return false;
}

void check_batch(int64_t batch, int64_t length) {
    if (batch < 1 || length < 1 || batch > (1 << 20) || length > (1 << 20) || batch * length > (1 << 24))
        throw Problem("a batch of " + std::to_string(batch) + " x " + std::to_string(length) + " tokens");
}

}  // namespace

LT_API int lt_version() { return 3; }

LT_API const char* lt_kernels(int index) {
    const Kernels* kernels = index < 0 ? nullptr : nth_kernels(index);
    return kernels == nullptr ? nullptr : kernels->name;
}

LT_API lt::Runner* lt_open(const int64_t* plan, int64_t plan_size, const uint8_t* file, int64_t file_size, int threads,
                           const char* kernels, char* error, int room) {
    lt::Runner* runner = nullptr;
    guarded(error, room, [&] {
        const Kernels& chosen = named_kernels(kernels);
        if (plan_size < 0 || file_size < 0 || threads < 1) throw Problem("sizes that cannot be");
        runner = new lt::Runner(lt::read_model(plan, size_t(plan_size), file, size_t(file_size), chosen), chosen, threads);
    });
    return runner;
}

LT_API void lt_close(lt::Runner* runner) { delete runner; }

LT_API int64_t lt_step_bytes(const lt::Runner* runner) { return int64_t(runner->model().step_bytes()); }

LT_API int lt_threads(const lt::Runner* runner) { return runner->threads(); }

LT_API const char* lt_kernels_of(const lt::Runner* runner) { return runner->kernels().name; }

LT_API lt::State* lt_encode(lt::Runner* runner, const int64_t* source, int64_t batch, int64_t length, float* states,
                            char* error, int room) {
    lt::State* state = nullptr;
    guarded(error, room, [&] {
        check_batch(batch, length);
        state = runner->encode(source, int(batch), int(length), states).release();
    });
    return state;
}

LT_API void lt_release(lt::State* state) { delete state; }

LT_API int lt_restrict(lt::Runner* runner, const int64_t* ids, int64_t count, char* error, int room) {
    return guarded(error, room, [&] {
        if (ids != nullptr && (count < 1 || count > (1 << 24))) throw Problem("no words are allowed");
        runner->restrict_to(ids, int(count));
    });
}

LT_API int lt_step(lt::Runner* runner, lt::State* state, const int64_t* tokens, const int64_t* order,
                   const int64_t* sentences, int64_t batch, int64_t beams, int64_t count, float* scores, int64_t* found,
                   float* end_scores, char* error, int room) {
    return guarded(error, room, [&] {
        if (batch < 1 || beams < 1 || batch > (1 << 20) || beams > (1 << 20) || batch * beams > (1 << 20))
            throw Problem(std::to_string(batch) + " sentences of " + std::to_string(beams) + " beams");
        if (count < 1 || count > (1 << 24)) throw Problem(std::to_string(count) + " candidates");
        runner->step(*state, tokens, order, sentences, int(batch), int(beams), int(count), scores, found, end_scores);
    });
}

// See search.h. limits: (batch).
LT_API lt::Search* lt_search(lt::Runner* runner, const int64_t* source, const int64_t* limits, int64_t batch,
                             int64_t length, int64_t beam, int64_t min_len, int64_t ngram, double lenpen, char* error,
                             int room) {
    lt::Search* search = nullptr;
    guarded(error, room, [&] {
        check_batch(batch, length);
        for (const int64_t number : {beam, min_len, ngram})
            if (number < 0 || number > (1 << 24)) throw Problem("settings of a search that cannot be");
        const lt::Search::Settings settings{int(beam), int(min_len), int(ngram), lenpen};
        search = new lt::Search(*runner, source, limits, int(batch), int(length), settings);
    });
    return search;
}

// 1: there are more steps; 2: there are none.
LT_API int lt_search_step(lt::Search* search, char* error, int room) {
    bool goes_on = false;
    return guarded(error, room, [&] { goes_on = search->advance(); }) ? (goes_on ? 1 : 2) : 0;
}

// Length of a sentence's hypothesis, by rank; 0 if there is none. tokens: as many as there is room for.
LT_API int64_t lt_search_found(const lt::Search* search, int64_t sentence, int64_t rank, int64_t* tokens, int64_t most,
                               float* score) {
    if (sentence < 0 || sentence >= search->sentences()) return 0;
    const auto& found = search->found(int(sentence));
    if (rank < 0 || rank >= int64_t(found.size())) return 0;
    const auto& own = found[size_t(rank)].tokens;
    std::copy(own.begin(), own.begin() + std::min(int64_t(own.size()), most), tokens);
    *score = found[size_t(rank)].score;
    return int64_t(own.size());
}

LT_API void lt_search_release(lt::Search* search) { delete search; }

// One int8 layer by itself, for tests: x (rows, in), codes (out, in), scales (out), bias (out) or null, y (rows, out).
LT_API int lt_linear(const char* kernels, const float* x, int64_t rows, int64_t in, const int8_t* codes,
                     const float* scales, const float* bias, int64_t out, float* y, char* error, int room) {
    return guarded(error, room, [&] {
        const Kernels& chosen = named_kernels(kernels);
        if (rows < 1 || in < 1 || out < 1 || rows > (1 << 16) || in > (1 << 16) || out > (1 << 16))
            throw Problem("sizes that cannot be");
        const size_t padded = size_t(lt::blocks(int(out))) * lt::kBlock, stride = size_t(lt::fours(int(in))) * 4;
        auto packed = lt::zeroed<int8_t>(padded * stride);
        std::vector<float> padded_scales(padded), padded_bias(padded), scale(static_cast<size_t>(rows));
        std::vector<int32_t> sums(padded), zero(static_cast<size_t>(rows));
        for (int64_t o = 0; o < out; ++o) {
            padded_scales[o] = scales[o];
            padded_bias[o] = bias == nullptr ? 0.0f : bias[o];
            for (int64_t i = 0; i < in; ++i) {
                const int8_t code = codes[o * in + i];
                packed[size_t(o / lt::kBlock) * stride * lt::kBlock + i / 4 * 64 + o % lt::kBlock * 4 + i % 4] = code;
                sums[o] += code;
            }
        }
        std::vector<uint8_t> coded(size_t(rows) * stride);
        for (int64_t row = 0; row < rows; ++row)
            chosen.encode_row(x + row * in, int(in), coded.data() + row * stride, &scale[row], &zero[row]);
        const lt::PackedView view{int(in),              int(out),    packed.get(), nullptr,
                                  padded_scales.data(), sums.data(), bias == nullptr ? nullptr : padded_bias.data()};
        chosen.linear_int8(view, {coded.data(), stride, scale.data(), zero.data()}, int(rows), 0, lt::blocks(int(out)),
                           false, y, size_t(out));
    });
}

// See machine.h; what the fastest kernels do.
LT_API int lt_machine(int threads, int64_t rows, int64_t size, double seconds, double* speed, char* error, int room) {
    return guarded(error, room, [&] {
        if (threads < 1 || threads > 1024 || rows < 1 || rows > 256 || size < 1 || size > (int64_t(1) << 32) ||
            !(seconds > 0 && seconds <= 60))
            throw Problem("sizes that cannot be");
        *speed = lt::multiply_adds_a_second(*nth_kernels(0), threads, int(rows), size_t(size), seconds);
    });
}
