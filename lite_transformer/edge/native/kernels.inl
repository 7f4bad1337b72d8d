// Included once for each instruction set, inside a namespace of its own, after
//   LT_TARGET  the attribute of the instruction set, on every function (so that no file needs a flag of its own),
//   kRows      rows of the input that one pass over the weights serves,
//   kOffset    what `dot_tile` takes away from the codes of the input,
//   dot_tile<R, is_first>(x, stride, w, fours, sums): sums[R][16] = codes of R rows times a block of weights, which the
//     first rows bring into the cache.
// Vectors are those of the compiler (GCC, Clang): eight floats, however many registers that takes.

#define LT_INLINE static inline __attribute__((always_inline)) LT_TARGET

typedef float F8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t I8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint8_t B8 __attribute__((vector_size(8), aligned(1), may_alias));

LT_INLINE F8 load(const float* p) { return *reinterpret_cast<const F8*>(p); }
LT_INLINE void store(float* p, F8 v) { *reinterpret_cast<F8*>(p) = v; }
LT_INLINE F8 all(float v) { return F8{v, v, v, v, v, v, v, v}; }
LT_INLINE F8 larger(F8 a, F8 b) { return a > b ? a : b; }
LT_INLINE F8 smaller(F8 a, F8 b) { return a < b ? a : b; }  // b where a is no number
LT_INLINE float total(F8 v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }

LT_INLINE float largest_of(F8 v) {
    float found = v[0];
    for (int i = 1; i < 8; ++i) found = v[i] > found ? v[i] : found;
    return found;
}

// Nearest integer, ties to even, of |v| < 2^22: the low bits of v + 1.5 * 2^23.
constexpr float kMagic = 12582912.0f;
constexpr int32_t kMagicBits = 0x4B400000;

LT_INLINE I8 whole(F8 v) {
    F8 shifted = v + all(kMagic);
    return (I8)shifted - kMagicBits;
}

// Relative error below 2e-7 in [-87, 88], the ends beyond.
LT_INLINE F8 exp8(F8 x) {
    x = larger(smaller(x, all(88.0f)), all(-87.0f));
    F8 shifted = x * 1.44269504f + all(kMagic);
    I8 power = (I8)shifted - kMagicBits;
    F8 n = shifted - all(kMagic);
    F8 r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    F8 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    I8 scale = (power + 127) << 23;
    return p * (F8)scale;
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

LT_TARGET static void encode_row(const float* x, int n, uint8_t* codes, float* scale, int32_t* zero) {
    F8 low = all(0.0f), high = all(0.0f);
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        F8 v = load(x + i);
        low = v < low ? v : low;
        high = v > high ? v : high;
    }
    if (i < n) {
        F8 v = load_some(x + i, n - i, 0.0f);
        low = v < low ? v : low;
        high = v > high ? v : high;
    }
    float least = -largest_of(-low), most = largest_of(high);
    float step = (most - least) / 255.0f;
    if (!(step > 0.0f) || !(step < 3.0e38f)) step = 1.0f;  // a row of zeros, or of numbers that are none
    float shift = -least / step;
    int32_t middle = whole(all(shift > 255.0f ? 255.0f : shift))[0];
    *scale = step;
    *zero = middle;
    for (i = 0; i < n; i += 8) {
        F8 v = (i + 8 <= n ? load(x + i) : load_some(x + i, n - i, 0.0f)) / all(step);
        I8 code = whole(larger(smaller(v, all(256.0f)), all(-256.0f))) + middle;
        code = code < 0 ? I8{} : code;
        code = code > 255 ? I8{} + 255 : code;
        B8 bytes = __builtin_convertvector(code, B8);
        if (i + 8 <= n) {
            *reinterpret_cast<B8*>(codes + i) = bytes;
        } else {
            for (int k = i; k < n; ++k) codes[k] = bytes[k - i];
        }
    }
}

// 16 outputs of a row: bias, activation, and a whole or a cut store.
LT_INLINE void finish(F8 low, F8 high, const float* bias, int first, int out, bool relu, float* y) {
    if (bias != nullptr) {
        low += load(bias + first);  // padded to whole blocks
        high += load(bias + first + 8);
    }
    if (relu) {
        low = larger(low, all(0.0f));
        high = larger(high, all(0.0f));
    }
    if (first + kBlock <= out) {
        store(y + first, low);
        store(y + first + 8, high);
        return;
    }
    store_some(y + first, out - first < 8 ? out - first : 8, low);
    if (out - first > 8) store_some(y + first + 8, out - first - 8, high);
}

template <int R, bool kIsFirst>
LT_INLINE void int8_tile(const PackedView& w, const CodedRows& x, int row, int block, bool relu, float* y,
                         size_t y_stride) {
    alignas(64) int32_t sums[R * kBlock];
    const int count = fours(w.in), first = block * kBlock;
    dot_tile<R, kIsFirst>(x.codes + row * x.stride, x.stride, w.codes + size_t(block) * count * 64, count, sums);
    for (int r = 0; r < R; ++r) {
        F8 result[2];
        for (int half = 0; half < 2; ++half) {
            I8 own = *reinterpret_cast<const I8*>(w.sums + first + 8 * half);
            I8 found = *reinterpret_cast<const I8*>(sums + r * kBlock + 8 * half) - own * (x.zero[row + r] - kOffset);
            result[half] = __builtin_convertvector(found, F8) * (load(w.scales + first + 8 * half) * x.scale[row + r]);
        }
        finish(result[0], result[1], w.bias, first, w.out, relu, y + (row + r) * y_stride);
    }
}

template <int R>
LT_INLINE void fp32_tile(const PackedView& w, const float* x, size_t x_stride, int block, bool relu, float* y,
                         size_t y_stride) {
    F8 low[R], high[R];
    for (int r = 0; r < R; ++r) low[r] = high[r] = all(0.0f);
    const float* values = w.values + size_t(block) * w.in * kBlock;
    for (int k = 0; k < w.in; ++k) {
        F8 a = load(values + k * kBlock), b = load(values + k * kBlock + 8);
        for (int r = 0; r < R; ++r) {
            F8 v = all(x[r * x_stride + k]);
            low[r] += v * a;
            high[r] += v * b;
        }
    }
    for (int r = 0; r < R; ++r) finish(low[r], high[r], w.bias, block * kBlock, w.out, relu, y + r * y_stride);
}

LT_TARGET static void linear_int8(const PackedView& w, const CodedRows& x, int rows, int first, int last, bool relu,
                                  float* y, size_t y_stride) {
    for (int block = first; block < last; ++block) {
        int row = 0;
        if (rows >= kRows) {
            int8_tile<kRows, true>(w, x, row, block, relu, y, y_stride);
            for (row = kRows; row + kRows <= rows; row += kRows)
                int8_tile<kRows, false>(w, x, row, block, relu, y, y_stride);
        }
        if (kRows > 4 && row + 4 <= rows) {
            int8_tile<4, true>(w, x, row, block, relu, y, y_stride);
            row += 4;
        }
        switch (rows - row) {
            case 1: int8_tile<1, true>(w, x, row, block, relu, y, y_stride); break;
            case 2: int8_tile<2, true>(w, x, row, block, relu, y, y_stride); break;
            case 3: int8_tile<3, true>(w, x, row, block, relu, y, y_stride); break;
            default: break;
        }
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
    F8 sum = all(0.0f);
    float rest = 0.0f;
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        F8 v = load(x + i);
        if (residual != nullptr) {
            v += load(residual + i);
            store(x + i, v);
        }
        sum += v;
    }
    for (; i < n; ++i) {
        if (residual != nullptr) x[i] += residual[i];
        rest += x[i];
    }
    const float mean = (total(sum) + rest) / float(n);
    sum = all(0.0f);
    rest = 0.0f;
    for (i = 0; i + 8 <= n; i += 8) {
        F8 v = load(x + i) - mean;
        sum += v * v;
    }
    for (; i < n; ++i) rest += (x[i] - mean) * (x[i] - mean);
    const float factor = 1.0f / __builtin_sqrtf((total(sum) + rest) / float(n) + epsilon);
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

LT_TARGET static void softmax(float* x, int n) {
    const int whole_n = rounded8(n);
    for (int i = n; i < whole_n; ++i) x[i] = -3.0e38f;
    F8 high = load(x);
    for (int i = 8; i < whole_n; i += 8) high = larger(load(x + i), high);
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

LT_TARGET static void attend(const float* query, const float* const* keys, size_t value_offset, int count, int heads,
                             int padded_dim, float* scores, float* out) {
    for (int head = 0; head < heads; ++head) {
        const size_t place = size_t(head) * padded_dim;
        const float* own = query + place;
        int t = 0;
        for (; t + 4 <= count; t += 4) {
            F8 sum[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
            for (int r = 0; r < padded_dim; r += 8) {
                F8 q = load(own + r);
                for (int j = 0; j < 4; ++j) sum[j] += q * load(keys[t + j] + place + r);
            }
            for (int j = 0; j < 4; ++j) scores[t + j] = total(sum[j]);
        }
        for (; t < count; ++t) {
            F8 sum = all(0.0f);
            for (int r = 0; r < padded_dim; r += 8) sum += load(own + r) * load(keys[t] + place + r);
            scores[t] = total(sum);
        }
        softmax(scores, count);
        int r = 0;
        for (; r + 32 <= padded_dim; r += 32) weighted<4>(keys, value_offset + place + r, count, scores, out + place + r);
        for (; r < padded_dim; r += 8) weighted<1>(keys, value_offset + place + r, count, scores, out + place + r);
    }
}

LT_TARGET static void convolve(const float* const* window, const float* kernels, int heads, int size, int head_dim,
                               float* out) {
    for (int head = 0; head < heads; ++head) {
        const float* kernel = kernels + size_t(head) * size;
        const int first = head * head_dim, last = first + head_dim;
        int c = first;
        for (; c + 8 <= last; c += 8) {
            F8 sum = all(0.0f);
            for (int k = 0; k < size; ++k)
                if (window[k] != nullptr) sum += kernel[k] * load(window[k] + c);
            store(out + c, sum);
        }
        for (; c < last; ++c) {
            float sum = 0.0f;
            for (int k = 0; k < size; ++k)
                if (window[k] != nullptr) sum += kernel[k] * window[k][c];
            out[c] = sum;
        }
    }
}

LT_TARGET static void exp_sum(const float* x, int n, float* largest, float* sum) {
    F8 high = all(-3.0e38f);
    int i = 0;
    for (; i + 8 <= n; i += 8) high = larger(load(x + i), high);
    if (i < n) high = larger(load_some(x + i, n - i, -3.0e38f), high);
    const float most = largest_of(high);
    F8 found = all(0.0f);
    for (i = 0; i + 8 <= n; i += 8) {
        // a number that is none must reach the sum
        F8 v = load(x + i) - most;
        found += exp8(v) + (v - v);
    }
    float rest = 0.0f;
    if (i < n) {
        F8 v = load_some(x + i, n - i, 0.0f) - most;
        F8 e = exp8(v) + (v - v);
        for (int j = 0; j < n - i; ++j) rest += e[j];
    }
    *largest = most;
    *sum = total(found) + rest;
}

LT_TARGET static int next_above(const float* x, int from, int n, float threshold) {
    int i = from;
    while (i < n && i % 32 != 0) {
        if (x[i] > threshold) return i;
        ++i;
    }
    for (; i + 32 <= n; i += 32) {
        F8 high = larger(larger(load(x + i), load(x + i + 8)), larger(load(x + i + 16), load(x + i + 24)));
        if (largest_of(high) > threshold) {
            for (int j = i; j < i + 32; ++j)
                if (x[j] > threshold) return j;
        }
    }
    for (; i < n; ++i)
        if (x[i] > threshold) return i;
    return n;
}

static const Kernels kTable = {LT_NAME, encode_row, linear_int8, linear_fp32, norm,    gate,
                               softmax, attend,     convolve,    exp_sum,     next_above};

#undef LT_INLINE
