// Included once for each instruction set, inside a namespace of its own, after
//   LT_TARGET  the attribute of the instruction set, on every function (so that no file needs a flag of its own),
//   kRows      rows of the input that one pass over the weights serves,
//   kOffset    what `dot_tile` takes away from the codes of the input,
//   kLanes     floats of the widest vector, 8 or 16,
//   runs(rows) how many runs of blocks are gone through side by side for so many rows: a power of two,
//   dot_tile<R, B, is_first>(x, stride, w, gap, fours, sums): sums[B][R][16] = codes of R rows times B blocks of weights
//     that lie `gap` bytes apart, which the first rows bring into the cache.
// Vectors are those of the compiler (GCC, Clang): eight floats, however many registers that takes. LT_VECTORS names the
// file of what the compiler makes little of.

#define LT_INLINE static inline __attribute__((always_inline)) LT_TARGET

typedef float F8 __attribute__((vector_size(32)));
typedef int32_t I8 __attribute__((vector_size(32)));
typedef uint8_t B8 __attribute__((vector_size(8)));
typedef float FW __attribute__((vector_size(4 * kLanes)));
typedef int32_t IW __attribute__((vector_size(4 * kLanes)));
// The same at any address in memory. Not for variables: GCC 12 with a stack protector (the flags of Debian's Python)
// writes local arrays of such a type as if they were aligned.
typedef float LooseF8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint8_t LooseB8 __attribute__((vector_size(8), aligned(1), may_alias));
typedef float LooseFW __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t LooseIW __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

LT_INLINE F8 load(const float* p) { return *reinterpret_cast<const LooseF8*>(p); }
LT_INLINE void store(float* p, F8 v) { *reinterpret_cast<LooseF8*>(p) = v; }
LT_INLINE F8 all(float v) { return F8{v, v, v, v, v, v, v, v}; }
LT_INLINE float total(F8 v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }

LT_INLINE float largest_of(F8 v) {
    float found = v[0];
    for (int i = 1; i < 8; ++i) found = v[i] > found ? v[i] : found;
    return found;
}

// Of exp8 and whole: the low bits of v + 1.5 * 2^23 are the nearest integer to |v| < 2^22, ties to even.
constexpr float kMagic = 12582912.0f;
constexpr int32_t kMagicBits = 0x4B400000;

#ifdef LT_VECTORS
#include LT_VECTORS
#else

LT_INLINE F8 larger(F8 a, F8 b) { return a > b ? a : b; }   // b where one is no number
LT_INLINE F8 smaller(F8 a, F8 b) { return a < b ? a : b; }  // the same

// Nearest integer, ties to even, of |v| < 2^22.
LT_INLINE I8 whole(F8 v) {
    F8 shifted = v + all(kMagic);
    return (I8)shifted - kMagicBits;
}

// Codes of 16 bits -> bytes, those beyond them the nearest.
LT_INLINE void store_codes(uint8_t* p, I8 codes) {
    codes = codes < 0 ? I8{} : codes;
    codes = codes > 255 ? I8{} + 255 : codes;
    *reinterpret_cast<LooseB8*>(p) = __builtin_convertvector(codes, B8);
}

// The sums of eight vectors.
LT_INLINE F8 totals(const F8* v) {
    return F8{total(v[0]), total(v[1]), total(v[2]), total(v[3]), total(v[4]), total(v[5]), total(v[6]), total(v[7])};
}

#endif

// v -> exp(v): relative error below 2e-7 in [-87, 88], the ends beyond. I: integers as wide as F's floats.
template <typename F, typename I>
LT_INLINE void to_exp(F& v) {
    F x = v;
    if constexpr (sizeof(F) == sizeof(F8)) {
        x = larger(smaller(x, all(88.0f)), all(-87.0f));
    } else {
        x = x < 88.0f ? x : F{} + 88.0f;
        x = x > -87.0f ? x : F{} - 87.0f;
    }
    F shifted = x * 1.44269504f + kMagic;
    I power = (I)shifted - kMagicBits;
    F n = shifted - kMagic;
    F r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    F p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    I scale = (power + 127) << 23;
    v = p * (F)scale;
}

LT_INLINE F8 exp8(F8 x) {
    to_exp<F8, I8>(x);
    return x;
}

LT_INLINE F8 sigmoid8(F8 x) { return all(1.0f) / (all(1.0f) + exp8(-x)); }

// The last n < 8 floats, and what stands for the others.
LT_INLINE F8 load_some(const float* p, int n, float other) {
    float all_of_them[8] = {other, other, other, other, other, other, other, other};
    for (int i = 0; i < n; ++i) all_of_them[i] = p[i];
    return load(all_of_them);
}

LT_INLINE void store_some(float* p, int n, F8 v) {
    for (int i = 0; i < n; ++i) p[i] = v[i];
}

// Codes of eight, and how far they are from those that are whole.
template <bool kDivides>
LT_INLINE I8 code_of(const F8& x, float by, int32_t middle, F8* away) {
    const F8 exact = larger(smaller(kDivides ? x / by : x * by, all(256.0f)), all(-256.0f));
    const I8 code = whole(exact);
    const F8 off = exact - __builtin_convertvector(code, F8);
    *away = larger(larger(off, -off), *away);
    return code + middle;
}

// Codes of a row divided or multiplied by a number; returns how far one is at most from those that are whole.
template <bool kDivides>
LT_INLINE float code_all(const float* x, int n, float by, int32_t middle, uint8_t* codes) {
    F8 away = all(0.0f);
    int i = 0;
    for (; i + 8 <= n; i += 8) store_codes(codes + i, code_of<kDivides>(load(x + i), by, middle, &away));
    if (i < n) {
        uint8_t last[8];
        store_codes(last, code_of<kDivides>(load_some(x + i, n - i, 0.0f), by, middle, &away));
        for (int k = i; k < n; ++k) codes[k] = last[k - i];
    }
    return largest_of(away);
}

LT_TARGET static void encode_row(const float* x, int n, uint8_t* codes, float* scale, int32_t* zero) {
    F8 low[4], high[4];  // several, for each waits for the one before it
    for (int j = 0; j < 4; ++j) low[j] = high[j] = all(0.0f);
    int i = 0;
    for (; i + 32 <= n; i += 32) {
        for (int j = 0; j < 4; ++j) {
            F8 v = load(x + i + 8 * j);
            low[j] = smaller(v, low[j]);
            high[j] = larger(v, high[j]);
        }
    }
    for (; i < n; i += 8) {
        F8 v = i + 8 <= n ? load(x + i) : load_some(x + i, n - i, 0.0f);
        low[0] = smaller(v, low[0]);
        high[0] = larger(v, high[0]);
    }
    float least = -largest_of(-smaller(smaller(low[0], low[1]), smaller(low[2], low[3])));
    float most = largest_of(larger(larger(high[0], high[1]), larger(high[2], high[3])));
    float step = (most - least) / 255.0f;
    if (!(step > 0.0f) || !(step < 3.0e38f)) step = 1.0f;  // a row of zeros, or of numbers that are none
    float shift = -least / step;
    int32_t middle = whole(all(shift > 255.0f ? 255.0f : shift))[0];
    *scale = step;
    *zero = middle;
    // What a division rounds to, which takes twice as long, unless one is so near to the middle between two codes that
    // the product might fall on the other side.
    const float factor = 1.0f / step;
    if (!(factor < 1.0e30f) || code_all<false>(x, n, factor, middle, codes) > 0.4999f)
        code_all<true>(x, n, step, middle, codes);
}

// 16 outputs of a row, in vectors of any width: bias, activation, and a whole or a cut store. By memcpy, for vectors
// that are a template's type forget that they may lie anywhere.
template <typename F>
LT_INLINE void finish(F* result, const float* bias, int first, int out, bool relu, float* y) {
    constexpr int count = int(kBlock * sizeof(float) / sizeof(F)), lanes = kBlock / count;
    for (int i = 0; i < count; ++i) {
        F own = F{};
        if (bias != nullptr) std::memcpy(&own, bias + first + i * lanes, sizeof own);  // padded to whole blocks
        result[i] += own;
        if (relu) result[i] = result[i] > 0.0f ? result[i] : F{};
    }
    std::memcpy(y + first, result, sizeof(float) * size_t(first + kBlock <= out ? kBlock : out - first));
}

// R rows from `row` on, B blocks of outputs that lie `gap` blocks apart.
template <int R, int B, bool kIsFirst>
LT_INLINE void int8_tile(const PackedView& w, const CodedRows& x, int row, int block, int gap, bool relu, float* y,
                         size_t y_stride) {
    alignas(64) int32_t sums[B * R * kBlock];
    const int count = fours(w.in);
    const size_t size = size_t(count) * 64;
    dot_tile<R, B, kIsFirst>(x.codes + row * x.stride, x.stride, w.codes + block * size, gap * size, count, sums);
    for (int b = 0; b < B; ++b) {
        const int first = (block + b * gap) * kBlock;
        for (int r = 0; r < R; ++r) {
            FW result[kBlock / kLanes];
            for (int i = 0; i < kBlock / kLanes; ++i) {
                const int place = first + i * kLanes;
                IW own = *reinterpret_cast<const LooseIW*>(w.sums + place);
                IW found = *reinterpret_cast<const LooseIW*>(sums + (b * R + r) * kBlock + i * kLanes);
                FW factor = *reinterpret_cast<const LooseFW*>(w.scales + place) * x.scale[row + r];
                result[i] = __builtin_convertvector(found - own * (x.zero[row + r] - kOffset), FW) * factor;
            }
            finish(result, w.bias, first, w.out, relu, y + (row + r) * y_stride);
        }
    }
}

template <int R>
LT_INLINE void fp32_tile(const PackedView& w, const float* x, size_t x_stride, int block, bool relu, float* y,
                         size_t y_stride) {
    F8 sum[R][2];
    for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = all(0.0f);
    const float* values = w.values + size_t(block) * w.in * kBlock;
    for (int k = 0; k < w.in; ++k) {
        F8 a = load(values + k * kBlock), b = load(values + k * kBlock + 8);
        for (int r = 0; r < R; ++r) {
            F8 v = all(x[r * x_stride + k]);
            sum[r][0] += v * a;
            sum[r][1] += v * b;
        }
    }
    for (int r = 0; r < R; ++r) finish(sum[r], w.bias, block * kBlock, w.out, relu, y + r * y_stride);
}

// Any number of rows.
template <int B>
LT_INLINE void int8_rows(const PackedView& w, const CodedRows& x, int rows, int block, int gap, bool relu, float* y,
                         size_t y_stride) {
    int row = 0;
    if (rows >= kRows) {
        int8_tile<kRows, B, true>(w, x, row, block, gap, relu, y, y_stride);
        for (row = kRows; row + kRows <= rows; row += kRows)
            int8_tile<kRows, B, false>(w, x, row, block, gap, relu, y, y_stride);
    }
    if (kRows > 4 && row + 4 <= rows) {
        int8_tile<4, B, true>(w, x, row, block, gap, relu, y, y_stride);
        row += 4;
    }
    switch (rows - row) {
        case 1: int8_tile<1, B, true>(w, x, row, block, gap, relu, y, y_stride); break;
        case 2: int8_tile<2, B, true>(w, x, row, block, gap, relu, y, y_stride); break;
        case 3: int8_tile<3, B, true>(w, x, row, block, gap, relu, y, y_stride); break;
        default: break;
    }
}

// Tiles of B blocks, of which each is the next one of a run of blocks: many processors fetch several runs at once faster
// than a single one. R: the rows, or 0 for any number.
template <int R, int B>
LT_INLINE void int8_runs(const PackedView& w, const CodedRows& x, int rows, int first, int last, bool relu, float* y,
                         size_t y_stride) {
    const int run = (last - first) / B;
    for (int block = first; block < first + run; ++block) {
        if constexpr (R == 0) {
            int8_rows<B>(w, x, rows, block, run, relu, y, y_stride);
        } else {
            int8_tile<R, B, true>(w, x, 0, block, run, relu, y, y_stride);
        }
    }
    if constexpr (B > 1) int8_runs<R, (B + 1) / 2>(w, x, rows, first + run * B, last, relu, y, y_stride);
}

LT_TARGET static void linear_int8(const PackedView& w, const CodedRows& x, int rows, int first, int last, bool relu,
                                  float* y, size_t y_stride) {
    switch (rows) {
        case 1: int8_runs<1, runs(1)>(w, x, rows, first, last, relu, y, y_stride); break;
        case 2: int8_runs<2, runs(2)>(w, x, rows, first, last, relu, y, y_stride); break;
        case 3: int8_runs<3, runs(3)>(w, x, rows, first, last, relu, y, y_stride); break;
        case 4: int8_runs<4, runs(4)>(w, x, rows, first, last, relu, y, y_stride); break;
        default: int8_runs<0, runs(kRows)>(w, x, rows, first, last, relu, y, y_stride);
    }
}

LT_TARGET static void linear_fp32(const PackedView& w, const float* x, size_t x_stride, int rows, int first, int last,
                                  bool relu, float* y, size_t y_stride) {
    for (int block = first; block < last; ++block) {
        int row = 0;
        for (; row + 4 <= rows; row += 4)
            fp32_tile<4>(w, x + row * x_stride, x_stride, block, relu, y + row * y_stride, y_stride);
        for (; row < rows; ++row)
            fp32_tile<1>(w, x + row * x_stride, x_stride, block, relu, y + row * y_stride, y_stride);
    }
}

LT_TARGET static void norm(float* x, const float* residual, const float* weight, const float* bias, int n,
                           float epsilon) {
    if (residual != nullptr)
        for (int i = 0; i < n; ++i) x[i] += residual[i];
    F8 sum[4];  // several, for each waits for the one before it
    for (int j = 0; j < 4; ++j) sum[j] = all(0.0f);
    float rest = 0.0f;
    int i = 0;
    for (; i + 32 <= n; i += 32)
        for (int j = 0; j < 4; ++j) sum[j] += load(x + i + 8 * j);
    for (; i + 8 <= n; i += 8) sum[0] += load(x + i);
    for (; i < n; ++i) rest += x[i];
    const float mean = (total((sum[0] + sum[1]) + (sum[2] + sum[3])) + rest) / float(n);
    for (int j = 0; j < 4; ++j) sum[j] = all(0.0f);
    rest = 0.0f;
    for (i = 0; i + 32 <= n; i += 32) {
        for (int j = 0; j < 4; ++j) {
            F8 v = load(x + i + 8 * j) - mean;
            sum[j] += v * v;
        }
    }
    for (; i + 8 <= n; i += 8) {
        F8 v = load(x + i) - mean;
        sum[0] += v * v;
    }
    for (; i < n; ++i) rest += (x[i] - mean) * (x[i] - mean);
    const float variance = (total((sum[0] + sum[1]) + (sum[2] + sum[3])) + rest) / float(n);
    const float factor = 1.0f / __builtin_sqrtf(variance + epsilon);
    for (i = 0; i + 8 <= n; i += 8)
        store(x + i, (load(x + i) - mean) * factor * load(weight + i) + load(bias + i));
    for (; i < n; ++i) x[i] = (x[i] - mean) * factor * weight[i] + bias[i];
}

LT_TARGET static void gate(const float* x, float* y, int n) {
    int i = 0;
    for (; i + 8 <= n; i += 8) store(y + i, load(x + i) * sigmoid8(load(x + n + i)));
    if (i < n) {
        F8 v = load_some(x + i, n - i, 0.0f) * sigmoid8(load_some(x + n + i, n - i, 0.0f));
        store_some(y + i, n - i, v);
    }
}

// x fills vectors: what is behind its n numbers does not count.
LT_INLINE void softmax_of(float* x, int n) {
    const I8 places = {0, 1, 2, 3, 4, 5, 6, 7};
    const int whole_n = rounded8(n), last = whole_n - 8;
    F8 high = places < n - last ? load(x + last) : all(-3.0e38f);
    store(x + last, high);
    for (int i = 0; i < last; i += 8) high = larger(load(x + i), high);
    const float most = largest_of(high);
    F8 sum = all(0.0f);
    for (int i = 0; i < whole_n; i += 8) {
        F8 v = exp8(load(x + i) - most);
        store(x + i, v);
        sum += v;
    }
    const float factor = 1.0f / total(sum);
    for (int i = 0; i < whole_n; i += 8) store(x + i, load(x + i) * factor);
}

LT_TARGET static void softmax(float* x, int n) { softmax_of(x, n); }

// `parts` vectors of the weighted sum of the values, from `from` on.
template <int parts>
LT_INLINE void weighted(const float* const* values, size_t from, int count, const float* weights, float* out) {
    F8 sum[parts];
    for (int i = 0; i < parts; ++i) sum[i] = all(0.0f);
    for (int t = 0; t < count; ++t) {
        const float* row = values[t] + from;
        F8 weight = all(weights[t]);
        for (int i = 0; i < parts; ++i) sum[i] += weight * load(row + 8 * i);
    }
    for (int i = 0; i < parts; ++i) store(out + 8 * i, sum[i]);
}

LT_TARGET static void attend(const float* query, const float* const* keys, size_t head_offset, size_t value_offset,
                             int count, int heads, int padded_dim, float* scores, float* out) {
    for (int head = 0; head < heads; ++head) {
        const size_t place = head * head_offset;
        const float* own = query + size_t(head) * padded_dim;
        float* result = out + size_t(head) * padded_dim;
        for (int t = 0; t < count; t += 8) {
            F8 sum[8];
            const float* key[8];
            for (int j = 0; j < 8; ++j) {
                sum[j] = all(0.0f);
                key[j] = keys[t + j < count ? t + j : count - 1] + place;  // the last again, to fill the vector
            }
            for (int r = 0; r < padded_dim; r += 8) {
                F8 q = load(own + r);
                for (int j = 0; j < 8; ++j) sum[j] += q * load(key[j] + r);
            }
            store(scores + t, totals(sum));
        }
        softmax_of(scores, count);
        const size_t values = place + value_offset;
        int r = 0;
        for (; r + 64 <= padded_dim; r += 64) weighted<8>(keys, values + r, count, scores, result + r);
        for (; r + 32 <= padded_dim; r += 32) weighted<4>(keys, values + r, count, scores, result + r);
        for (; r < padded_dim; r += 8) weighted<1>(keys, values + r, count, scores, result + r);
    }
}

// `parts` vectors of a head's channels, from `first` on; the last ones end with the head, and may begin within others.
template <int parts>
LT_INLINE void convolve_some(const float* const* window, const float* kernel, int size, int first, int last,
                             float* out) {
    F8 sum[parts];
    int place[parts];
    for (int i = 0; i < parts; ++i) {
        sum[i] = all(0.0f);
        place[i] = first + 8 * i < last - 8 ? first + 8 * i : last - 8;
    }
    for (int k = 0; k < size; ++k) {
        if (window[k] == nullptr) continue;
        F8 factor = all(kernel[k]);
        for (int i = 0; i < parts; ++i) sum[i] += factor * load(window[k] + place[i]);
    }
    for (int i = 0; i < parts; ++i) store(out + place[i], sum[i]);
}

LT_TARGET static void convolve(const float* const* window, const float* kernels, int heads, int size, int head_dim,
                               float* out) {
    for (int head = 0; head < heads; ++head) {
        const float* kernel = kernels + size_t(head) * size;
        int c = head * head_dim;
        const int last = c + head_dim;
        if (head_dim >= 8) {
            for (; c + 32 < last; c += 64) convolve_some<8>(window, kernel, size, c, last, out);
            for (; c + 8 < last; c += 32) convolve_some<4>(window, kernel, size, c, last, out);
            for (; c < last; c += 8) convolve_some<1>(window, kernel, size, c, last, out);
            continue;
        }
        for (; c < last; ++c) {
            float sum = 0.0f;
            for (int k = 0; k < size; ++k)
                if (window[k] != nullptr) sum += kernel[k] * window[k][c];
            out[c] = sum;
        }
    }
}

LT_TARGET static void maxima(const float* x, int n, float* found) {
    F8 high[kGroups / 8];
    for (int j = 0; j < kGroups / 8; ++j) high[j] = all(-3.0e38f);
    int i = 0;
    for (; i + kGroups <= n; i += kGroups)
        for (int j = 0; j < kGroups / 8; ++j) high[j] = larger(load(x + i + 8 * j), high[j]);
    for (int j = 0; j < kGroups / 8; ++j) store(found + 8 * j, high[j]);
    for (; i < n; ++i)
        if (x[i] > found[i % kGroups]) found[i % kGroups] = x[i];
}

LT_TARGET static float exp_sum(const float* x, int n, float from, const int8_t* ahead) {
    FW wide = FW{};
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        if (ahead != nullptr) {
            __builtin_prefetch(ahead + 8 * i, 0, 2);
            __builtin_prefetch(ahead + 8 * i + 64, 0, 2);
        }
        for (int j = 0; j < 16; j += kLanes) {
            FW v = *reinterpret_cast<const LooseFW*>(x + i + j) - from;
            FW e = v;
            to_exp<FW, IW>(e);
            wide += e + (v - v);  // a number that is none must reach the sum
        }
    }
    alignas(64) float lanes[kLanes];
    *reinterpret_cast<LooseFW*>(lanes) = wide;
    float sum = 0.0f;
    for (int j = 0; j < kLanes; j += 8) sum += total(load(lanes + j));
    for (; i < n; i += 8) {
        const int some = n - i < 8 ? n - i : 8;
        F8 v = load_some(x + i, some, 0.0f) - from;
        F8 e = exp8(v) + (v - v);
        for (int j = 0; j < some; ++j) sum += e[j];
    }
    return sum;
}

static int runs_of(int rows) { return runs(rows < kRows ? rows : kRows); }

static const Kernels kTable = {LT_NAME, encode_row, runs_of, linear_int8, linear_fp32, norm,
                               gate,    softmax,    attend,  convolve,    maxima,      exp_sum};

#undef LT_INLINE
