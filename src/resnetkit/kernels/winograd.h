// 3x3 convolutions of stride 1 by Winograd's minimal filtering along rows, F(2, 3), in bfloat16 with float32 sums.
//
// Two neighbouring places of an output row, from four of the input, take 4 products for each row of the kernel instead
// of 6 (Lavin and Gray, arXiv:1509.09308, Sec. 4.1). The transforms are sums of two, so no error grows much: values are
// rounded to bfloat16 once after them. Maps are [images][height][width][channels]; `serves` says which. Weights and their
// gradients are float32 [outputs][3][3][inputs], which is channels_last memory. Everything here is one thread's part.
#pragma once
#if defined(__AVX512BF16__)
#include "threads.h"
#include "vectors.h"

namespace winograd {

constexpr long KERNEL = 3;  // rows and columns
constexpr long POINTS = 4;  // products for two places of a row

typedef bfloat16 half;

struct Shape {
    long images, height, width, inputs, outputs;
    long tiles() const { return width / 2; }
    long pairs() const { return (tiles() + 1) / 2; }
    long points() const { return POINTS * (height + 2) * tiles() * inputs; }
    long pair_points() const { return POINTS * height * pairs() * 2 * inputs; }
    long padded_pair_points() const { return POINTS * (height + 2) * pairs() * 2 * inputs; }
    long weight_points() const { return POINTS * KERNEL * inputs * outputs; }
};

// (d0 - d2, d1 + d2, d2 - d1, d1 - d3)
inline void to_points(const floats d[4], floats v[POINTS]) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
}

// One image to [POINTS][height + 2][tiles][channels]; the first and last rows are zeros.
inline void transform(const half* image, half* points, long height, long width, long channels) {
    long tiles = width / 2, row_size = tiles * channels, plane = (height + 2) * row_size;
    for (long p = 0; p < POINTS; p++) {
        std::memset(points + p * plane, 0, row_size * sizeof(half));
        std::memset(points + p * plane + (height + 1) * row_size, 0, row_size * sizeof(half));
    }
    for (long y = 0; y < height; y++) {
        const half* row = image + y * width * channels;
        half* to = points + (y + 1) * row_size;
        for (long c = 0; c < channels; c += LANES) {
            floats d[4], v[POINTS];
            d[2] = floats{};
            d[3] = load(row + c);
            for (long t = 0; t < tiles; t++) {
                d[0] = d[2];
                d[1] = d[3];
                d[2] = load(row + (2 * t + 1) * channels + c);
                d[3] = t + 1 < tiles ? load(row + (2 * t + 2) * channels + c) : floats{};
                to_points(d, v);
                for (long p = 0; p < POINTS; p++) store(to + p * plane + t * channels + c, v[p]);
            }
        }
    }
}

// Where a weight is in [outputs / 16][POINTS][inputs / 2][3 rows][16 outputs][2 inputs].
inline long weight_place(long block, long point, long row, long input, long lane, long inputs) {
    return ((((block * POINTS + point) * (inputs / 2) + input / 2) * KERNEL + row) * LANES + lane) * 2 + input % 2;
}

// Weights to that order. Backwards, what was an output is an input, and the kernel is turned by half a circle.
inline void transform_weights(const float* weight, half* points, long inputs, long outputs, bool backwards,
                              long first_block, long last_block) {
    for (long block = first_block; block < last_block; block++)
        for (long row = 0; row < KERNEL; row++)
            // The numbers of one side are next to each other: outputs backwards, inputs forwards.
            for (long one = 0; one < (backwards ? inputs : LANES); one++)
                for (long next = 0; next < (backwards ? LANES : inputs); next += LANES) {
                    const float* from = backwards
                                            ? weight + (one * KERNEL + 2 - row) * KERNEL * outputs + block * LANES
                                            : weight + ((block * LANES + one) * KERNEL + row) * KERNEL * inputs + next;
                    long column = backwards ? -outputs : inputs;
                    floats left = load(backwards ? from + 2 * outputs : from);
                    floats middle = load((backwards ? from + 2 * outputs : from) + column);
                    floats right = load((backwards ? from + 2 * outputs : from) + 2 * column);
                    floats u[POINTS] = {left, (left + middle + right) * 0.5f, (left - middle + right) * 0.5f, right};
                    for (long p = 0; p < POINTS; p++) {
                        half rounded[LANES];
                        store(rounded, u[p]);
                        for (long i = 0; i < LANES; i++)
                            points[backwards ? weight_place(block, p, row, one, i, inputs)
                                             : weight_place(block, p, row, next + i, one, inputs)] = rounded[i];
                    }
                }
}

// One point of ROWS x TILES tiles and 16 outputs: `points` is at the first of ROWS + 2 rows. A value of the input is
// fetched once for the three rows of the kernel.
template <int ROWS, int TILES, long INPUTS>
inline void point(const half* points, const half* weights, __m512 (&sums)[ROWS][TILES], long row_size) {
    for (int y = 0; y < ROWS; y++)
        for (int t = 0; t < TILES; t++) sums[y][t] = _mm512_setzero_ps();
    const int32_t* x[ROWS + 2];
    for (int row = 0; row < ROWS + 2; row++) x[row] = (const int32_t*)(points + row * row_size);
    const float* w = (const float*)weights;
    for (long pair = 0; pair < INPUTS / 2; pair++, w += KERNEL * LANES) {
        __m512bh kernel[KERNEL];
        for (int k = 0; k < KERNEL; k++) kernel[k] = (__m512bh)_mm512_loadu_ps(w + k * LANES);
#pragma GCC unroll 6
        for (int row = 0; row < ROWS + 2; row++)
#pragma GCC unroll 8
            for (int t = 0; t < TILES; t++) {
                __m512bh value = (__m512bh)_mm512_set1_epi32(x[row][t * (INPUTS / 2) + pair]);
#pragma GCC unroll 3
                for (int k = 0; k < KERNEL; k++)
                    if (row - k >= 0 && row - k < ROWS)
                        sums[row - k][t] = _mm512_dpbf16_ps(sums[row - k][t], kernel[k], value);
            }
    }
}

// The moments of what a convolution gives, around `origin`: [outputs] each, added to.
struct Moments {
    const float* origin;
    float* sums;
    float* squares;
};

// One image's points to 16 outputs at a time, in blocks of ROWS x TILES tiles; adds `beside`, and counts `moments`.
template <int ROWS, int TILES, long INPUTS>
inline void convolve(const half* points, const half* weights, half* out, const half* beside, Shape s, const Moments* moments) {
    long row_size = s.tiles() * INPUTS, plane = (s.height + 2) * row_size, point_size = KERNEL * INPUTS * LANES;
    for (long o = 0; o < s.outputs; o += LANES, weights += POINTS * point_size) {
        floats sum = {}, square = {}, origin = {};
        if (moments) origin = load(moments->origin + o);
        for (long y = 0; y < s.height; y += ROWS)
            for (long t = 0; t < s.tiles(); t += TILES) {
                __m512 m[POINTS][ROWS][TILES];
                for (long p = 0; p < POINTS; p++)
                    point<ROWS, TILES, INPUTS>(points + p * plane + y * row_size + t * INPUTS,
                                               weights + p * point_size, m[p], row_size);
                for (int i = 0; i < ROWS; i++)
                    for (int j = 0; j < TILES; j++) {
                        floats left = (floats)(m[0][i][j] + m[1][i][j] + m[2][i][j]);
                        floats right = (floats)(m[1][i][j] - m[2][i][j] - m[3][i][j]);
                        long place = ((y + i) * s.width + 2 * (t + j)) * s.outputs + o;
                        if (beside) {
                            left += load(beside + place);
                            right += load(beside + place + s.outputs);
                        }
                        store(out + place, left);
                        store(out + place + s.outputs, right);
                        floats l = left - origin, r = right - origin;
                        sum += l + r;
                        square += l * l + r * r;
                    }
            }
        if (moments) {
            store(moments->sums + o, load(moments->sums + o) + sum);
            store(moments->squares + o, load(moments->squares + o) + square);
        }
    }
}

typedef void (*Convolve)(const half*, const half*, half*, const half*, Shape, const Moments*);

template <long INPUTS>
Convolve for_sides(long height, long width) {
    if (height % 4 == 0 && width % 8 == 0) return convolve<4, 4, INPUTS>;
    if (height % 2 == 0 && width % 14 == 0) return convolve<2, 7, INPUTS>;
    return nullptr;
}

// What convolves such a map, or null where nothing here does.
inline Convolve convolution(long height, long width, long inputs) {
    switch (inputs) {
        case 16:
            return for_sides<16>(height, width);
        case 32:
            return for_sides<32>(height, width);
        case 64:
            return for_sides<64>(height, width);
        case 128:
            return for_sides<128>(height, width);
        case 256:
            return for_sides<256>(height, width);
        default:
            return nullptr;
    }
}

inline bool serves(Shape s) {
    return convolution(s.height, s.width, s.inputs) && convolution(s.height, s.width, s.outputs);
}

// Two tiles' values, one beside the other for each channel: [16][2].
inline void store_pairs(half* to, floats first, floats second) {
    const __m512i beside = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                            21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(beside, both));
}

// One image to [POINTS][height][pairs of tiles][channels][2 tiles]; a tile too many is zeros.
inline void transform_pairs(const half* image, half* points, long height, long width, long channels) {
    long pairs = (width / 2 + 1) / 2, row_size = pairs * channels * 2, plane = height * row_size;
    for (long y = 0; y < height; y++) {
        const half* row = image + y * width * channels;
        half* to = points + y * row_size;
        for (long c = 0; c < channels; c += LANES) {
            floats d[6], v[2][POINTS];
            d[4] = floats{};
            d[5] = load(row + c);
            for (long pair = 0; pair < pairs; pair++) {
                long left = width - 4 * pair;  // columns from here on
                d[0] = d[4];
                d[1] = d[5];
                for (long k = 2; k < 6; k++)
                    d[k] = k - 1 < left ? load(row + (4 * pair + k - 1) * channels + c) : floats{};
                to_points(d, v[0]);
                to_points(d + 2, v[1]);
                for (long p = 0; p < POINTS; p++)
                    store_pairs(to + p * plane + (pair * channels + c) * 2, v[0][p], left > 2 ? v[1][p] : floats{});
            }
        }
    }
}

// The gradient of one image, as (g0, g0 + g1, g0 - g1, -g1), to [POINTS][height + 2][pairs of tiles][channels][2 tiles];
// the first and last rows are zeros, and so is a tile too many.
inline void transform_gradient(const half* image, half* points, long height, long width, long channels) {
    long pairs = (width / 2 + 1) / 2, row_size = pairs * channels * 2, plane = (height + 2) * row_size;
    for (long p = 0; p < POINTS; p++) {
        std::memset(points + p * plane, 0, row_size * sizeof(half));
        std::memset(points + p * plane + (height + 1) * row_size, 0, row_size * sizeof(half));
    }
    for (long y = 0; y < height; y++)
        for (long pair = 0; pair < pairs; pair++)
            for (long c = 0; c < channels; c += LANES) {
                const half* from = image + (y * width + 4 * pair) * channels + c;
                bool two = 4 * pair + 2 < width;
                floats g0 = load(from), g1 = load(from + channels);
                floats h0 = two ? load(from + 2 * channels) : floats{}, h1 = two ? load(from + 3 * channels) : floats{};
                half* to = points + (y + 1) * row_size + (pair * channels + c) * 2;
                store_pairs(to, g0, h0);
                store_pairs(to + plane, g0 + g1, h0 + h1);
                store_pairs(to + 2 * plane, g0 - g1, h0 - h1);
                store_pairs(to + 3 * plane, -g1, -h1);
            }
}

constexpr int GROUP = 8;  // inputs whose sums stay in registers, for each row of the kernel

// Add the products of one point, GROUP inputs and 16 outputs over `images` images to sums [3 rows][inputs][outputs]. A
// value of the input is fetched once for the three rows of the gradient that it meets.
inline void products(const half* in, const half* grad, float* sums, long images, long height, long pairs, long inputs,
                     long outputs, long in_image, long grad_image) {
    __m512 total[KERNEL][GROUP];
    for (int row = 0; row < KERNEL; row++)
        for (int i = 0; i < GROUP; i++) total[row][i] = _mm512_setzero_ps();
    long grad_row = pairs * outputs * 2;
    for (long image = 0; image < images; image++) {
        const int32_t* x = (const int32_t*)(in + image * in_image);
        const half* g = grad + image * grad_image;
        for (long place = 0; place < height * pairs; place++, x += inputs, g += 2 * outputs) {
            __m512bh gradient[KERNEL];
#pragma GCC unroll 3
            for (int row = 0; row < KERNEL; row++)
                gradient[row] = (__m512bh)_mm512_loadu_ps((const float*)(g + (2 - row) * grad_row));
#pragma GCC unroll 8
            for (int i = 0; i < GROUP; i++) {
                __m512bh value = (__m512bh)_mm512_set1_epi32(x[i]);
#pragma GCC unroll 3
                for (int row = 0; row < KERNEL; row++)
                    total[row][i] = _mm512_dpbf16_ps(total[row][i], gradient[row], value);
            }
        }
    }
    for (int row = 0; row < KERNEL; row++)
        for (int i = 0; i < GROUP; i++) {
            float* to = sums + (row * inputs + i) * outputs;
            _mm512_storeu_ps(to, _mm512_loadu_ps(to) + total[row][i]);
        }
}

// The sums of `images` images' pairs, added to sums [POINTS][3][inputs][outputs].
inline void add_weight_gradient(const half* in, const half* grad, float* sums, long images, Shape s) {
    long pairs = s.pairs();
    long in_plane = s.height * pairs * s.inputs * 2, grad_plane = (s.height + 2) * pairs * s.outputs * 2;
    for (long p = 0; p < POINTS; p++)
        for (long o = 0; o < s.outputs; o += LANES)
            for (long i = 0; i < s.inputs; i += GROUP)
                products(in + p * in_plane + i * 2, grad + p * grad_plane + o * 2,
                         sums + (p * KERNEL * s.inputs + i) * s.outputs + o, images, s.height, pairs, s.inputs,
                         s.outputs, POINTS * in_plane, POINTS * grad_plane);
}

// Sums over points, one [POINTS][3][inputs][outputs] after another, to the three columns of the kernel.
inline void to_weight_gradient(const float* sums, int count, float* grad_weight, Shape s, long first_input, long last_input) {
    long size = POINTS * KERNEL * s.inputs * s.outputs;
    for (long row = 0; row < KERNEL; row++)
        for (long i = first_input; i < last_input; i++)
            for (long o = 0; o < s.outputs; o++) {
                float m[POINTS] = {};
                for (int t = 0; t < count; t++)
                    for (long p = 0; p < POINTS; p++)
                        m[p] += sums[size * t + ((p * KERNEL + row) * s.inputs + i) * s.outputs + o];
                float* to = grad_weight + (o * KERNEL + row) * KERNEL * s.inputs + i;
                to[0] = m[0] + (m[1] + m[2]) / 2;
                to[s.inputs] = (m[1] - m[2]) / 2;
                to[2 * s.inputs] = (m[1] + m[2]) / 2 + m[3];
            }
}

}  // namespace winograd
#endif
