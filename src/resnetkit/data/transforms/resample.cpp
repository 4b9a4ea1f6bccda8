// Resize 8-bit pixels by convolution, equal to the bit to Pillow's Image.resize (src/libImaging/Resample.c): the filter
// is as wide as an output pixel, weights are in fixed point, rows are resized before columns, and values are rounded to
// 8 bits in between. Only the pixels of a window are computed, and only the source pixels that they need are read.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int BITS = 32 - 8 - 2;  // fraction bits of a weight: a signed sum over 8-bit pixels fits into 32 bits
constexpr int HALF = 1 << (BITS - 1);
constexpr int BLOCK = 64;  // sums that are kept in registers
constexpr int GROUP = 4;   // pixels that are loaded together
constexpr int SPLIT = 11;  // bits of the lower part of a weight, which is multiplied as two numbers of 16 bits

struct Filter {
    double support;
    double (*weight)(double);
};

double triangle(double x) {
    x = std::fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

double cubic(double x) {  // Keys 1981, a = -1/2
    constexpr double a = -0.5;
    x = std::fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

constexpr Filter FILTERS[] = {{1.0, triangle}, {2.0, cubic}};

// The weights along one side: each output pixel is a weighted sum of `count` input pixels, beginning at `first`. Pixels
// behind the end have weight 0.
struct Taps {
    int count = 0;
    std::vector<int> first, weights;

    Taps(const Filter& filter, int size, float from, float to, int out_size, int window_from, int window_size)
        : first(window_size) {
        double scale = static_cast<double>(to - from) / out_size;
        double wide = std::max(scale, 1.0), support = filter.support * wide, narrow = 1.0 / wide;
        std::vector<int> end(window_size);
        for (int i = 0; i < window_size; ++i) {
            double center = from + (window_from + i + 0.5) * scale;
            first[i] = std::max(static_cast<int>(center - support + 0.5), 0);
            end[i] = std::min(static_cast<int>(center + support + 0.5), size);
            count = std::max(count, end[i] - first[i]);
        }
        weights.assign(static_cast<size_t>(count) * window_size, 0);
        std::vector<double> exact(count);
        for (int i = 0; i < window_size; ++i) {
            double center = from + (window_from + i + 0.5) * scale, sum = 0.0;
            int taps = end[i] - first[i];
            for (int t = 0; t < taps; ++t) sum += exact[t] = filter.weight((first[i] + t - center + 0.5) * narrow);
            for (int t = 0; t < taps; ++t) {
                double weight = (sum != 0.0 ? exact[t] / sum : exact[t]) * (1 << BITS);
                weights[static_cast<size_t>(i) * count + t] = static_cast<int>(weight < 0 ? weight - 0.5 : weight + 0.5);
            }
        }
    }

    void reverse() {
        int outputs = static_cast<int>(first.size());
        for (int i = 0, j = outputs - 1; i < j; ++i, --j) {
            std::swap(first[i], first[j]);
            int *a = &weights[static_cast<size_t>(i) * count], *b = &weights[static_cast<size_t>(j) * count];
            std::swap_ranges(a, a + count, b);
        }
    }

    const int* weights_of(int i) const { return &weights[static_cast<size_t>(i) * count]; }
};

inline uint8_t clipped(int sum) { return static_cast<uint8_t>(std::clamp(sum >> BITS, 0, 255)); }

#if defined(__AVX512BW__) || defined(__AVX2__)
#if defined(__AVX512BW__)
constexpr int ROWS = 4;  // that are resized together, each in 128 bits of a register
using Lanes = __m512i;
inline __m128i at(const uint8_t* bytes) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)); }
inline Lanes load(const uint8_t* pixel, long stride) {
    Lanes lanes = _mm512_castsi128_si512(at(pixel));
    lanes = _mm512_inserti32x4(lanes, at(pixel + stride), 1);
    lanes = _mm512_inserti32x4(lanes, at(pixel + 2 * stride), 2);
    return _mm512_inserti32x4(lanes, at(pixel + 3 * stride), 3);
}
inline Lanes every(__m128i lane) { return _mm512_broadcast_i32x4(lane); }
inline Lanes every(int value) { return _mm512_set1_epi32(value); }
inline Lanes add(Lanes a, Lanes b) { return _mm512_add_epi32(a, b); }
inline Lanes add_products(Lanes a, Lanes b) { return _mm512_madd_epi16(a, b); }
inline Lanes pick(Lanes bytes, Lanes places) { return _mm512_shuffle_epi8(bytes, places); }
inline Lanes clipped(Lanes upper, Lanes lower) {
    Lanes sum = _mm512_srai_epi32(add(_mm512_slli_epi32(upper, SPLIT), lower), BITS);
    return _mm512_min_epi32(_mm512_max_epi32(sum, every(0)), every(255));
}
inline void store(Lanes lanes, uint8_t* out, size_t stride) {
    alignas(64) uint32_t words[16];
    _mm512_store_si512(words, lanes);
    for (int row = 0; row < ROWS; ++row) std::memcpy(out + row * stride, words + 4 * row, 4);
}
#else
constexpr int ROWS = 2;
using Lanes = __m256i;
inline __m128i at(const uint8_t* bytes) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)); }
inline Lanes load(const uint8_t* pixel, long stride) { return _mm256_set_m128i(at(pixel + stride), at(pixel)); }
inline Lanes every(__m128i lane) { return _mm256_broadcastsi128_si256(lane); }
inline Lanes every(int value) { return _mm256_set1_epi32(value); }
inline Lanes add(Lanes a, Lanes b) { return _mm256_add_epi32(a, b); }
inline Lanes add_products(Lanes a, Lanes b) { return _mm256_madd_epi16(a, b); }
inline Lanes pick(Lanes bytes, Lanes places) { return _mm256_shuffle_epi8(bytes, places); }
inline Lanes clipped(Lanes upper, Lanes lower) {
    Lanes sum = _mm256_srai_epi32(add(_mm256_slli_epi32(upper, SPLIT), lower), BITS);
    return _mm256_min_epi32(_mm256_max_epi32(sum, every(0)), every(255));
}
inline void store(Lanes lanes, uint8_t* out, size_t stride) {
    alignas(32) uint32_t words[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), lanes);
    for (int row = 0; row < ROWS; ++row) std::memcpy(out + row * stride, words + 4 * row, 4);
}
#endif

// Weights of a group of pixels: the upper and lower parts, for the first two and for the last two pixels.
struct Group {
    int upper[2], lower[2];
};

std::vector<Group> groups_of(const Taps& taps, int width, int groups) {
    std::vector<Group> found(static_cast<size_t>(width) * groups);
    auto pair = [](int a, int b) { return static_cast<int>((a & 0xffff) | (static_cast<unsigned>(b) << 16)); };
    for (int x = 0; x < width; ++x) {
        for (int g = 0; g < groups; ++g) {
            int weights[GROUP] = {};
            for (int t = 0; t < GROUP && g * GROUP + t < taps.count; ++t) weights[t] = taps.weights_of(x)[g * GROUP + t];
            Group& group = found[static_cast<size_t>(x) * groups + g];
            for (int half = 0; half < 2; ++half) {
                int a = weights[2 * half], b = weights[2 * half + 1], mask = (1 << SPLIT) - 1;
                group.upper[half] = pair(a >> SPLIT, b >> SPLIT);
                group.lower[half] = pair(a & mask, b & mask);
            }
        }
    }
    return found;
}

// Resize ROWS rows of three channels: products of pixels and 16-bit parts of weights are exact in 32 bits.
void across_colors(const uint8_t* in, long stride, uint8_t* out, size_t out_stride, const Taps& taps,
                   const Group* group, int groups, int width) {
    const char no = -1;  // gives a zero
    const Lanes first_two = every(_mm_setr_epi8(0, no, 3, no, 1, no, 4, no, 2, no, 5, no, no, no, no, no));
    const Lanes last_two = every(_mm_setr_epi8(6, no, 9, no, 7, no, 10, no, 8, no, 11, no, no, no, no, no));
    const Lanes lowest = every(_mm_setr_epi8(0, 4, 8, 12, no, no, no, no, no, no, no, no, no, no, no, no));
    for (int x = 0; x < width; ++x) {
        const uint8_t* pixel = in + 3 * taps.first[x];
        Lanes upper = every(0), lower = every(HALF);
        for (int g = 0; g < groups; ++g, ++group, pixel += 3 * GROUP) {
            Lanes bytes = load(pixel, stride);
            Lanes first = pick(bytes, first_two), last = pick(bytes, last_two);
            upper = add(upper, add(add_products(first, every(group->upper[0])), add_products(last, every(group->upper[1]))));
            lower = add(lower, add(add_products(first, every(group->lower[0])), add_products(last, every(group->lower[1]))));
        }
        store(pick(clipped(upper, lower), lowest), out + 3 * x, out_stride);
    }
}
#else
constexpr int ROWS = 1;
struct Group {};
std::vector<Group> groups_of(const Taps&, int, int) { return {}; }

void across_colors(const uint8_t* in, long, uint8_t* out, size_t, const Taps& taps, const Group*, int, int width) {
    for (int x = 0; x < width; ++x) {
        const int* weights = taps.weights_of(x);
        const uint8_t* pixel = in + 3 * taps.first[x];
        int sums[3] = {HALF, HALF, HALF};
        for (int t = 0; t < taps.count; ++t, pixel += 3)
            for (int c = 0; c < 3; ++c) sums[c] += pixel[c] * weights[t];
        for (int c = 0; c < 3; ++c) out[3 * x + c] = clipped(sums[c]);
    }
}
#endif

void across_grey(const uint8_t* in, uint8_t* out, const Taps& taps, int width) {
    for (int x = 0; x < width; ++x) {
        const int* weights = taps.weights_of(x);
        int sum = HALF;
        for (int t = 0; t < taps.count; ++t) sum += in[taps.first[x] + t] * weights[t];
        out[x] = clipped(sum);
    }
}

// Resize along the columns: one output row is a weighted sum of rows of `stride` bytes.
void down(const uint8_t* rows, size_t stride, uint8_t* out, const int* weights, int taps, int bytes) {
    for (int begin = 0; begin < bytes; begin += BLOCK) {
        int sums[BLOCK], length = std::min(BLOCK, bytes - begin);
        std::fill(sums, sums + BLOCK, HALF);
        for (int t = 0; t < taps; ++t) {
            const uint8_t* row = rows + t * stride + begin;  // rows are padded, so whole blocks can be read
            for (int i = 0; i < BLOCK; ++i) sums[i] += row[i] * weights[t];
        }
        uint8_t block[BLOCK];
        for (int i = 0; i < BLOCK; ++i) block[i] = clipped(sums[i]);
        std::memcpy(out + begin, block, length);
    }
}

// Resize the `box` (left, top, right, bottom) of `in` to out_width x out_height, and write the `window` (left, top,
// width, height) of the result to `out`. `in` has rows of `stride` bytes, and pixels without gaps. If `mirrored`, the
// result is mirrored left to right.
void resample_window(const uint8_t* in, long stride, int width, int height, int channels, int filter, const float* box,
                     int out_width, int out_height, const int* window, int mirrored, uint8_t* out) {
    Taps x_taps(FILTERS[filter], width, box[0], box[2], out_width, window[0], window[2]);
    if (mirrored) x_taps.reverse();
    Taps y_taps(FILTERS[filter], height, box[1], box[3], out_height, window[1], window[3]);
    auto [lowest, highest] = std::minmax_element(y_taps.first.begin(), y_taps.first.end());
    int top = *lowest, bottom = std::min(*highest + y_taps.count, height);
    int bytes = window[2] * channels, groups = (x_taps.count + GROUP - 1) / GROUP;
    std::vector<Group> weights = groups_of(x_taps, window[2], groups);
    // The weights of rows that are read but not computed are 0.
    size_t padded = static_cast<size_t>((bytes + BLOCK) / BLOCK) * BLOCK;
    std::unique_ptr<uint8_t[]> between(new uint8_t[padded * (bottom - top + y_taps.count + ROWS)]);
    // `reach` bytes of a row are read, which may be more than it has. The last rows are copied, so that nothing behind
    // `in` is read.
    int rightmost = *std::max_element(x_taps.first.begin(), x_taps.first.end());
    long reach = static_cast<long>(rightmost + GROUP * groups) * channels + 4;
    long last_byte = (height - 1) * stride + static_cast<long>(width) * channels;
    std::vector<uint8_t> copies(ROWS * reach);
    for (int y = top; y < bottom; y += ROWS) {
        const uint8_t* row = in + y * stride;
        long row_stride = stride;
        if ((y + ROWS - 1) * stride + reach > last_byte) {
            for (int r = 0; r < std::min(ROWS, bottom - y); ++r)
                std::memcpy(&copies[r * reach], row + r * stride,
                            std::min<long>(reach, static_cast<long>(width) * channels));
            row = copies.data();
            row_stride = reach;
        }
        uint8_t* across = &between[(y - top) * padded];
        if (channels == 3) {
            across_colors(row, row_stride, across, padded, x_taps, weights.data(), groups, window[2]);
        } else {
            for (int r = 0; r < ROWS; ++r) across_grey(row + r * row_stride, across + r * padded, x_taps, window[2]);
        }
    }
    for (int y = 0; y < window[3]; ++y)
        down(&between[(y_taps.first[y] - top) * padded], padded, out + static_cast<size_t>(y) * bytes,
             y_taps.weights_of(y), y_taps.count, bytes);
}

}  // namespace

// resample_window for C. Returns 0, or 1 if there is not enough memory.
extern "C" int resample(const uint8_t* in, long stride, int width, int height, int channels, int filter,
                        const float* box, int out_width, int out_height, const int* window, int mirrored, uint8_t* out) {
    try {
        resample_window(in, stride, width, height, channels, filter, box, out_width, out_height, window, mirrored, out);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}
