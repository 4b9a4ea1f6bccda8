// One thread's part of 3x3 convolutions of stride 1, by Winograd's minimal filtering along rows, in bfloat16 with float32
// sums.
//
// F(4, 3) computes four neighbouring places of an output row from six places of the input, with 6 products instead of 12
// for each row of the kernel; F(2, 3) computes two from four, with 4 products instead of 6. See transforms.h. Values are
// rounded to bfloat16 once, after the transforms. Maps are [images][height][width][channels]; see `serves` for the
// supported sizes. Weights and their gradients are float32 [outputs][3][3][inputs], which is channels_last memory.
#pragma once
#if defined(__AVX512BF16__)
#include "threads.h"
#include "transforms.h"
#include "vectors.h"

namespace winograd {

typedef bfloat16 half;

struct Shape {
    long images, height, width, inputs, outputs;
};

// Sizes of the transformed values of one image, and of the weights or a thread's sums of their gradients.
template <class F>
struct Sizes {
    long tiles, pairs, points, pair_points, padded_pair_points, weight_points;
    explicit Sizes(Shape s)
        : tiles(s.width / F::PLACES),
          pairs((tiles + 1) / 2),
          points(F::POINTS * (s.height + 2) * tiles * s.inputs),
          pair_points(F::POINTS * s.height * pairs * 2 * s.inputs),
          padded_pair_points(F::POINTS * (s.height + 2) * pairs * 2 * s.inputs),
          weight_points(F::POINTS * KERNEL * s.inputs * s.outputs) {}
};

// Transforms one image to [POINTS][height + 2][tiles][channels]; the first and last rows are zeros.
template <class F>
void transform(const half* image, half* points, long height, long width, long channels) {
    long tiles = width / F::PLACES, row_size = tiles * channels, plane = (height + 2) * row_size;
    for (long p = 0; p < F::POINTS; p++) {
        std::memset(points + p * plane, 0, row_size * sizeof(half));
        std::memset(points + p * plane + (height + 1) * row_size, 0, row_size * sizeof(half));
    }
    for (long y = 0; y < height; y++) {
        const half* row = image + y * width * channels;
        half* to = points + (y + 1) * row_size;
        for (long c = 0; c < channels; c += LANES) {
            floats d[F::PLACES + 2], v[F::POINTS];
            d[F::PLACES] = floats{};
            d[F::PLACES + 1] = load(row + c);
            for (long t = 0; t < tiles; t++) {
                d[0] = d[F::PLACES];
                d[1] = d[F::PLACES + 1];
                for (long k = 1; k < F::PLACES; k++) d[k + 1] = load(row + (F::PLACES * t + k) * channels + c);
                d[F::PLACES + 1] = t + 1 < tiles ? load(row + F::PLACES * (t + 1) * channels + c) : floats{};
                F::input(d, v);
                for (long p = 0; p < F::POINTS; p++) store(to + p * plane + t * channels + c, v[p]);
            }
        }
    }
}

// The index of a weight in [outputs / 16][POINTS][inputs / 2][3 rows][16 outputs][2 inputs].
template <class F>
long weight_place(long block, long point, long row, long input, long lane, long inputs) {
    return ((((block * F::POINTS + point) * (inputs / 2) + input / 2) * KERNEL + row) * LANES + lane) * 2 + input % 2;
}

// Transforms weights to this order. For the backward pass, inputs and outputs are exchanged, and the kernel is rotated by
// 180 degrees.
template <class F>
void transform_weights(const float* weight, half* points, long inputs, long outputs, bool backwards, Span blocks) {
    for (long block = blocks.first; block < blocks.last; block++)
        for (long row = 0; row < KERNEL; row++)
            // The innermost dimension: outputs in the backward pass, inputs in the forward pass.
            for (long one = 0; one < (backwards ? inputs : LANES); one++)
                for (long next = 0; next < (backwards ? LANES : inputs); next += LANES) {
                    const float* from = backwards
                                            ? weight + (one * KERNEL + 2 - row) * KERNEL * outputs + block * LANES
                                            : weight + ((block * LANES + one) * KERNEL + row) * KERNEL * inputs + next;
                    long column = backwards ? -outputs : inputs;
                    floats left = load(backwards ? from + 2 * outputs : from);
                    floats middle = load((backwards ? from + 2 * outputs : from) + column);
                    floats right = load((backwards ? from + 2 * outputs : from) + 2 * column);
                    floats u[F::POINTS];
                    F::weights(left, middle, right, u);
                    for (long p = 0; p < F::POINTS; p++) {
                        half rounded[LANES];
                        store(rounded, u[p]);
                        for (long i = 0; i < LANES; i++)
                            points[backwards ? weight_place<F>(block, p, row, one, i, inputs)
                                             : weight_place<F>(block, p, row, next + i, one, inputs)] = rounded[i];
                    }
                }
}

// Computes one point of ROWS x TILES tiles and 16 outputs; `points` points to the first of ROWS + 2 rows. A value of the
// input is loaded once for the three rows of the kernel.
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
#pragma GCC unroll 10
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

// Sums of a convolution's output and of its square, after `origin` is subtracted; [outputs] each.
struct Moments {
    const float* origin;
    float* sums;
    float* squares;
};

// Computes one image's output, 16 channels at a time, in blocks of ROWS x TILES tiles; adds `beside`, and sums `moments`.
template <class F, int ROWS, int TILES, long INPUTS>
void convolve(const half* points, const half* weights, half* out, const half* beside, Shape s, const Moments* moments) {
    long tiles = s.width / F::PLACES, row_size = tiles * INPUTS, plane = (s.height + 2) * row_size;
    long point_size = KERNEL * INPUTS * LANES;
    for (long o = 0; o < s.outputs; o += LANES, weights += F::POINTS * point_size) {
        floats sum = {}, square = {}, origin = {};
        if (moments) origin = load(moments->origin + o);
        for (long y = 0; y < s.height; y += ROWS)
            for (long t = 0; t < tiles; t += TILES) {
                __m512 m[F::POINTS][ROWS][TILES];
                for (long p = 0; p < F::POINTS; p++)
                    point<ROWS, TILES, INPUTS>(points + p * plane + y * row_size + t * INPUTS,
                                               weights + p * point_size, m[p], row_size);
                for (int i = 0; i < ROWS; i++)
                    for (int j = 0; j < TILES; j++) {
                        floats products[F::POINTS], to[F::PLACES];
                        for (long p = 0; p < F::POINTS; p++) products[p] = (floats)m[p][i][j];
                        F::output(products, to);
                        long place = ((y + i) * s.width + F::PLACES * (t + j)) * s.outputs + o;
                        for (long k = 0; k < F::PLACES; k++, place += s.outputs) {
                            if (beside) to[k] += load(beside + place);
                            store(out + place, to[k]);
                            floats x = to[k] - origin;
                            sum += x;
                            square += x * x;
                        }
                    }
            }
        if (moments) {
            store(moments->sums + o, load(moments->sums + o) + sum);
            store(moments->squares + o, load(moments->squares + o) + square);
        }
    }
}

typedef void (*Convolve)(const half*, const half*, half*, const half*, Shape, const Moments*);

template <class F, long INPUTS>
Convolve for_sides(long height, long width) {
    long tiles = width / F::PLACES;
    if (width % F::PLACES) return nullptr;
    if (height % 4 == 0 && tiles % 4 == 0) return convolve<F, 4, 4, INPUTS>;
    if (height % 2 == 0 && tiles % 7 == 0) return convolve<F, 2, 7, INPUTS>;
    if constexpr (F::PLACES == 4)
        if (height % 8 == 0 && tiles % 2 == 0) return convolve<F, 8, 2, INPUTS>;
    return nullptr;
}

// Returns the function that convolves a map of this size, or null if it is not supported.
template <class F>
Convolve convolution(long height, long width, long inputs) {
    switch (inputs) {
        case 16:
            return for_sides<F, 16>(height, width);
        case 32:
            return for_sides<F, 32>(height, width);
        case 64:
            return for_sides<F, 64>(height, width);
        case 128:
            return for_sides<F, 128>(height, width);
        case 256:
            return for_sides<F, 256>(height, width);
        default:
            return nullptr;
    }
}

template <class F>
bool serves(Shape s) {
    return convolution<F>(s.height, s.width, s.inputs) && convolution<F>(s.height, s.width, s.outputs);
}

// Interleaves the values of two tiles, for each channel: [16][2].
inline void store_pairs(half* to, floats first, floats second) {
    const __m512i beside = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                            21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(beside, both));
}

// Transforms one image to [POINTS][height][pairs of tiles][channels][2 tiles]; with an odd number of tiles, the last tile
// is zeros.
template <class F>
void transform_pairs(const half* image, half* points, long height, long width, long channels) {
    long pairs = (width / F::PLACES + 1) / 2, row_size = pairs * channels * 2, plane = height * row_size;
    constexpr long BOTH = 2 * F::PLACES;
    for (long y = 0; y < height; y++) {
        const half* row = image + y * width * channels;
        half* to = points + y * row_size;
        for (long c = 0; c < channels; c += LANES) {
            floats d[BOTH + 2], v[2][F::POINTS];
            d[BOTH] = floats{};
            d[BOTH + 1] = load(row + c);
            for (long pair = 0; pair < pairs; pair++) {
                long left = width - BOTH * pair;  // remaining columns
                d[0] = d[BOTH];
                d[1] = d[BOTH + 1];
                for (long k = 1; k <= BOTH; k++)
                    d[k + 1] = k < left ? load(row + (BOTH * pair + k) * channels + c) : floats{};
                F::input(d, v[0]);
                F::input(d + F::PLACES, v[1]);
                for (long p = 0; p < F::POINTS; p++)
                    store_pairs(to + p * plane + (pair * channels + c) * 2, v[0][p],
                                left > F::PLACES ? v[1][p] : floats{});
            }
        }
    }
}

// Transforms the gradient of one image to [POINTS][height + 2][pairs of tiles][channels][2 tiles]; the first and last rows
// are zeros, and so is the last tile if the number of tiles is odd.
template <class F>
void transform_gradient(const half* image, half* points, long height, long width, long channels) {
    long pairs = (width / F::PLACES + 1) / 2, row_size = pairs * channels * 2, plane = (height + 2) * row_size;
    for (long p = 0; p < F::POINTS; p++) {
        std::memset(points + p * plane, 0, row_size * sizeof(half));
        std::memset(points + p * plane + (height + 1) * row_size, 0, row_size * sizeof(half));
    }
    for (long y = 0; y < height; y++)
        for (long pair = 0; pair < pairs; pair++)
            for (long c = 0; c < channels; c += LANES) {
                bool two = (2 * pair + 1) * F::PLACES < width;
                floats g[2][F::PLACES] = {}, v[2][F::POINTS];
                for (long tile = 0; tile < 1 + two; tile++)
                    for (long k = 0; k < F::PLACES; k++)
                        g[tile][k] = load(image + (y * width + (2 * pair + tile) * F::PLACES + k) * channels + c);
                F::gradient(g[0], v[0]);
                F::gradient(g[1], v[1]);
                half* to = points + (y + 1) * row_size + (pair * channels + c) * 2;
                for (long p = 0; p < F::POINTS; p++) store_pairs(to + p * plane, v[0][p], v[1][p]);
            }
}

constexpr int GROUP = 8;  // inputs that are summed up in registers, for each row of the kernel

// Adds the products of one point, GROUP inputs and 16 outputs over `images` images to sums [3 rows][inputs][outputs]. A
// value of the input is loaded once and multiplied with three rows of the gradient.
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

// Adds the products of all points over `images` images to sums [POINTS][3][inputs][outputs].
template <class F>
void add_weight_gradient(const half* in, const half* grad, float* sums, long images, Shape s) {
    long pairs = Sizes<F>(s).pairs;
    long in_plane = s.height * pairs * s.inputs * 2, grad_plane = (s.height + 2) * pairs * s.outputs * 2;
    for (long p = 0; p < F::POINTS; p++)
        for (long o = 0; o < s.outputs; o += LANES)
            for (long i = 0; i < s.inputs; i += GROUP)
                products(in + p * in_plane + i * 2, grad + p * grad_plane + o * 2,
                         sums + (p * KERNEL * s.inputs + i) * s.outputs + o, images, s.height, pairs, s.inputs,
                         s.outputs, F::POINTS * in_plane, F::POINTS * grad_plane);
}

// Adds up the threads' sums, one [POINTS][3][inputs][outputs] after another, and transforms them into the three columns
// of the kernel.
template <class F>
void to_weight_gradient(const float* sums, int count, float* grad_weight, Shape s, Span inputs) {
    long size = F::POINTS * KERNEL * s.inputs * s.outputs;
    for (long row = 0; row < KERNEL; row++)
        for (long i = inputs.first; i < inputs.last; i++)
            for (long o = 0; o < s.outputs; o++) {
                float m[F::POINTS] = {}, columns[KERNEL];
                for (int t = 0; t < count; t++)
                    for (long p = 0; p < F::POINTS; p++)
                        m[p] += sums[size * t + ((p * KERNEL + row) * s.inputs + i) * s.outputs + o];
                F::columns(m, columns);
                float* to = grad_weight + (o * KERNEL + row) * KERNEL * s.inputs + i;
                for (long k = 0; k < KERNEL; k++) to[k * s.inputs] = columns[k];
            }
}

}  // namespace winograd
#endif
