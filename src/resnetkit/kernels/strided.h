// One thread's part of the gradients of 3x3 convolutions of stride 2 and padding 1, in bfloat16 with float32 sums. Maps
// and weights are as in winograd.h. Height and width are those of the output, half of the input's; the width is a
// multiple of 4.
#pragma once
#if defined(__AVX512BF16__)
#include "winograd.h"

namespace strided {

using winograd::half;
using winograd::KERNEL;
using winograd::Shape;

constexpr long TAPS = KERNEL * KERNEL;
constexpr int PLACES = 4;  // neighbouring places of the output's gradient that are computed together

inline long padded(Shape s) { return (s.height + 1) * (s.width + 1) * s.outputs; }

// Copies one image of the output's gradient to [height + 1][width + 1][outputs]; the last row and column are zeros.
inline void pad(const half* image, half* to, Shape s) {
    long row = s.width * s.outputs;
    for (long y = 0; y < s.height; y++, image += row, to += row + s.outputs) {
        std::memcpy(to, image, row * sizeof(half));
        std::memset(to + row, 0, s.outputs * sizeof(half));
    }
    std::memset(to, 0, (row + s.outputs) * sizeof(half));
}

// Copies weights to [inputs / 16][outputs / 2][9 taps][16 inputs][2 outputs].
inline void pack_weights(const float* weight, half* to, Shape s, long first_block, long last_block) {
    for (long block = first_block; block < last_block; block++)
        for (long pair = 0; pair < s.outputs / 2; pair++)
            for (long tap = 0; tap < TAPS; tap++)
                for (long lane = 0; lane < LANES; lane++)
                    for (long side = 0; side < 2; side++)
                        to[(((block * (s.outputs / 2) + pair) * TAPS + tap) * LANES + lane) * 2 + side] =
                            rounded(weight[((2 * pair + side) * TAPS + tap) * s.inputs + block * LANES + lane]);
}

// The input's gradient of one image. One, two or four places of the output depend on a place of the input; the number
// depends on whether its row and column are even. So each 2 x 2 places of the input use each of the nine taps once.
inline void input_gradient(const half* grad, const half* weights, half* grad_in, Shape s) {
    long grad_row = (s.width + 1) * s.outputs / 2, in_row = 2 * s.width * s.inputs;  // the first in pairs
    for (long c = 0; c < s.inputs; c += LANES, weights += s.outputs * TAPS * LANES)
        for (long y = 0; y < s.height; y++)
            for (long x = 0; x < s.width; x += PLACES) {
                __m512 sums[4][PLACES];
                for (int part = 0; part < 4; part++)
                    for (int i = 0; i < PLACES; i++) sums[part][i] = _mm512_setzero_ps();
                const int32_t* upper = (const int32_t*)grad + y * grad_row + x * s.outputs / 2;
                const int32_t* lower = upper + grad_row;
                const float* w = (const float*)weights;
                for (long pair = 0; pair < s.outputs / 2; pair++, w += TAPS * LANES) {
                    __m512bh a[PLACES + 1], b[PLACES + 1];
#pragma GCC unroll 5
                    for (int i = 0; i <= PLACES; i++) {
                        a[i] = (__m512bh)_mm512_set1_epi32(upper[i * s.outputs / 2 + pair]);
                        b[i] = (__m512bh)_mm512_set1_epi32(lower[i * s.outputs / 2 + pair]);
                    }
                    auto add = [&](int part, int tap, const __m512bh* from) __attribute__((always_inline)) {
                        __m512bh kernel = (__m512bh)_mm512_loadu_ps(w + tap * LANES);
#pragma GCC unroll 4
                        for (int i = 0; i < PLACES; i++)
                            sums[part][i] = _mm512_dpbf16_ps(sums[part][i], kernel, from[i]);
                    };
                    add(0, 4, a);
                    add(1, 5, a), add(1, 3, a + 1);
                    add(2, 7, a), add(2, 1, b);
                    add(3, 8, a), add(3, 6, a + 1), add(3, 2, b), add(3, 0, b + 1);
                }
                for (int part = 0; part < 4; part++)
                    for (int i = 0; i < PLACES; i++)
                        store(grad_in + (2 * y + part / 2) * in_row + (2 * (x + i) + part % 2) * s.inputs + c,
                              (floats)sums[part][i]);
            }
}

inline long in_pairs(Shape s) { return KERNEL * (2 * s.height + 1) * s.width * s.inputs; }
inline long grad_pairs(Shape s) { return s.height * s.width * s.outputs; }

// Copies one image of the input to [3 columns of the kernel][2 * height + 1][width / 2][inputs][2 places], where the two
// places are those of two neighbouring outputs; the first row is zeros.
inline void to_in_pairs(const half* image, half* to, Shape s) {
    long pairs = s.width / 2, row_size = pairs * s.inputs * 2, in_row = 2 * s.width * s.inputs;
    for (long k = 0; k < KERNEL; k++) {
        std::memset(to, 0, row_size * sizeof(half));
        to += row_size;
        for (long y = 0; y < 2 * s.height; y++, to += row_size)
            for (long pair = 0; pair < pairs; pair++)
                for (long c = 0; c < s.inputs; c += LANES) {
                    const half* from = image + y * in_row + (4 * pair + k - 1) * s.inputs + c;
                    floats first = pair == 0 && k == 0 ? floats{} : load(from);
                    winograd::store_pairs(to + (pair * s.inputs + c) * 2, first, load(from + 2 * s.inputs));
                }
    }
}

// Copies one image of the output's gradient to [height][width / 2][outputs][2 places].
inline void to_grad_pairs(const half* image, half* to, Shape s) {
    for (long pair = 0; pair < s.height * s.width / 2; pair++)
        for (long c = 0; c < s.outputs; c += LANES)
            winograd::store_pairs(to + (pair * s.outputs + c) * 2, load(image + 2 * pair * s.outputs + c),
                                  load(image + (2 * pair + 1) * s.outputs + c));
}

// Adds one image's part of the weights' gradient to sums [3 rows][3 columns][inputs][outputs].
inline void add_weight_gradient(const half* in, const half* grad, float* sums, Shape s) {
    constexpr int GROUP = winograd::GROUP;
    long pairs = s.width / 2, in_row = pairs * s.inputs, plane = (2 * s.height + 1) * in_row;  // in pairs
    for (long k = 0; k < KERNEL; k++)
        for (long o = 0; o < s.outputs; o += LANES)
            for (long c = 0; c < s.inputs; c += GROUP) {
                __m512 total[KERNEL][GROUP];
                for (int row = 0; row < KERNEL; row++)
                    for (int i = 0; i < GROUP; i++) total[row][i] = _mm512_setzero_ps();
                const int32_t* x = (const int32_t*)in + k * plane + c;
                const half* g = grad + o * 2;
                for (long y = 0; y < s.height; y++, x += in_row)
                    for (long pair = 0; pair < pairs; pair++, x += s.inputs, g += 2 * s.outputs) {
                        __m512bh gradient = (__m512bh)_mm512_loadu_ps((const float*)g);
#pragma GCC unroll 3
                        for (int row = 0; row < KERNEL; row++)
#pragma GCC unroll 8
                            for (int i = 0; i < GROUP; i++)
                                total[row][i] = _mm512_dpbf16_ps(total[row][i], gradient,
                                                                 (__m512bh)_mm512_set1_epi32(x[row * in_row + i]));
                    }
                for (int row = 0; row < KERNEL; row++)
                    for (int i = 0; i < GROUP; i++) {
                        float* to = sums + ((row * KERNEL + k) * s.inputs + c + i) * s.outputs + o;
                        _mm512_storeu_ps(to, _mm512_loadu_ps(to) + total[row][i]);
                    }
            }
}

// Adds up the threads' sums, one [9][inputs][outputs] after another, and writes them in the layout of weights.
inline void to_weight_gradient(const float* sums, int count, float* grad_weight, Shape s, Span inputs) {
    for (long tap = 0; tap < TAPS; tap++)
        for (long i = inputs.first; i < inputs.last; i++)
            for (long o = 0; o < s.outputs; o++) {
                float sum = 0;
                for (int t = 0; t < count; t++) sum += sums[((t * TAPS + tap) * s.inputs + i) * s.outputs + o];
                grad_weight[(o * TAPS + tap) * s.inputs + i] = sum;
            }
}

}  // namespace strided
#endif
