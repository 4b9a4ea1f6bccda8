// One thread's part of 3x3 convolutions of stride 1 and padding 1, by Winograd's minimal filtering in both directions, in
// float32.
//
// F(4 x 4, 3 x 3) computes a tile of 4 x 4 places of the output from 6 x 6 places of the input, with 36 products instead of
// 144 for each pair of channels. See transforms.h. Maps are [images][height][width][channels] of any height and width:
// places of a tile outside the map are zeros, and are not stored. Channels are multiples of 16. Weights and their gradients
// are [outputs][3][3][inputs], which is channels_last memory.
#pragma once
#include <algorithm>

#include "threads.h"
#include "transforms.h"
#include "vectors.h"

namespace winograd_float32 {

using winograd::KERNEL;
typedef winograd::F4 F;

constexpr long PLACES = F::PLACES, AROUND = PLACES + 2;  // of the output and of the input, on each side of a tile
constexpr long SIDE = F::POINTS, POINTS = SIDE * SIDE;
constexpr long PANEL = 16;  // outputs that are computed together
constexpr long VECTORS = PANEL / LANES;
constexpr long ROWS = LANES == 16 ? 12 : 6;  // tiles that are computed together, so that the sums fit into registers
constexpr long MOST_TILES = 48;              // tiles whose transformed values are in the cache at the same time
constexpr long GAP = 16;                     // planes of a power of two bytes would compete for the same lines of the cache

struct Shape {
    long images, height, width, inputs, outputs;

    long down() const { return (height + PLACES - 1) / PLACES; }
    long across() const { return (width + PLACES - 1) / PLACES; }
    long tiles() const { return down() * across(); }  // of an image
    long weight_points() const { return POINTS * inputs * outputs; }
};

// The size of the transformed values of one point and MOST_TILES tiles.
inline long plane(long channels) { return MOST_TILES * channels + GAP; }

// The tile of this index, of images [image][height][width][channels]: its first place in its image.
struct Tile {
    long image, y, x;

    Tile(const Shape& s, long index) {
        image = index / s.tiles();
        long place = index % s.tiles();
        y = place / s.across() * PLACES;
        x = place % s.across() * PLACES;
    }
};

// Applies a transform to the columns of FROM x FROM vectors, and then to the rows: TO x TO vectors. `from` returns the
// vector of a place, and `to` stores a result. Columns outside `inside` are zeros.
template <long FROM, long TO, class Transform, class From, class To>
inline __attribute__((always_inline)) void in_both_directions(Transform transform, From from, To to,
                                                              Span inside = {0, FROM}) {
    floats half[TO][FROM];
#pragma GCC unroll 6
    for (long x = 0; x < FROM; x++) {
        floats column[FROM] = {}, made[TO];
        if (x >= inside.first && x < inside.last)
#pragma GCC unroll 6
            for (long y = 0; y < FROM; y++) column[y] = from(y, x);
        transform(column, made);
#pragma GCC unroll 6
        for (long y = 0; y < TO; y++) half[y][x] = made[y];
    }
#pragma GCC unroll 6
    for (long y = 0; y < TO; y++) {
        floats made[TO];
        transform(half[y], made);
#pragma GCC unroll 6
        for (long x = 0; x < TO; x++) to(y, x, made[x]);
    }
}

// Transforms `count` tiles from `first` on to [POINTS][tiles][channels]. A tile is read with SIDES x SIDES places, which
// begin `before` places before its first place. Rows outside the image are read from `zeros`, SIDES * channels of them.
template <long SIDES, class Transform>
void transform(const float* images, float* points, const Shape& s, long channels, long first, long count, long before,
               const float* zeros, Transform one_direction) {
    long size = plane(channels);
    for (long t = 0; t < count; t++) {
        Tile tile(s, first + t);
        long top = tile.y - before, left = tile.x - before;
        Span inside = {std::max(-left, 0L), std::min(s.width - left, SIDES)};
        const float* rows[SIDES];
        for (long y = 0; y < SIDES; y++)
            rows[y] = top + y >= 0 && top + y < s.height
                          ? images + ((tile.image * s.height + top + y) * s.width + left) * channels
                          : zeros;
        for (long c = 0; c < channels; c += LANES) {
            float* to = points + t * channels + c;
            in_both_directions<SIDES, SIDE>(
                one_direction, [&](long y, long x) { return load(rows[y] + x * channels + c); },
                [&](long y, long x, floats v) { store(to + (y * SIDE + x) * size, v); }, inside);
        }
    }
}

inline void transform_input(const float* images, float* points, const Shape& s, long channels, long first, long count,
                            const float* zeros) {
    transform<AROUND>(images, points, s, channels, first, count, 1, zeros,
                      [](const floats* d, floats* v) { F::input(d, v); });
}

inline void transform_gradient(const float* images, float* points, const Shape& s, long channels, long first, long count,
                               const float* zeros) {
    transform<PLACES>(images, points, s, channels, first, count, 0, zeros,
                      [](const floats* g, floats* v) { F::gradient(g, v); });
}

// Transforms weights to [outputs / 16][POINTS][inputs][16 outputs]. For the backward pass, inputs and outputs are
// exchanged, and the kernel is rotated by 180 degrees.
inline void transform_weights(const float* weight, float* points, long inputs, long outputs, bool backwards,
                              Span panels) {
    constexpr long TAPS = KERNEL * KERNEL;
    for (long panel = panels.first; panel < panels.last; panel++)
        for (long i = 0; i < inputs; i++) {
            float taps[TAPS][PANEL];
            for (long tap = 0; tap < TAPS; tap++)
                for (long lane = 0; lane < PANEL; lane++)
                    taps[tap][lane] = backwards ? weight[(i * TAPS + TAPS - 1 - tap) * outputs + panel * PANEL + lane]
                                                : weight[((panel * PANEL + lane) * TAPS + tap) * inputs + i];
            for (long v = 0; v < VECTORS; v++) {
                float* to = points + (panel * POINTS * inputs + i) * PANEL + v * LANES;
                in_both_directions<KERNEL, SIDE>(
                    [](const floats* w, floats* u) { F::weights(w[0], w[1], w[2], u); },
                    [&](long y, long x) { return load(taps[y * KERNEL + x] + v * LANES); },
                    [&](long y, long x, floats u) { store(to + (y * SIDE + x) * inputs * PANEL, u); });
            }
        }
}

// Products of ROWS tiles [ROWS][inputs] and weights [inputs][16].
inline void multiply(const float* tiles, const float* weights, float* to, long inputs) {
    floats sums[ROWS][VECTORS] = {};
    for (long i = 0; i < inputs; i++, weights += PANEL) {
        floats w[VECTORS];
#pragma GCC unroll 4
        for (long v = 0; v < VECTORS; v++) w[v] = load(weights + v * LANES);
#pragma GCC unroll 12
        for (long r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (long v = 0; v < VECTORS; v++) sums[r][v] += tiles[r * inputs + i] * w[v];
    }
#pragma GCC unroll 12
    for (long r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (long v = 0; v < VECTORS; v++) store(to + r * PANEL + v * LANES, sums[r][v]);
}

// Sums of a convolution's output and of its square, after `origin` is subtracted; [outputs] each.
struct Moments {
    const float* origin;
    float* sums;
    float* squares;
};

constexpr long MOST_ROUNDED = (MOST_TILES + ROWS - 1) / ROWS * ROWS;
constexpr long PRODUCTS = POINTS * (MOST_ROUNDED * PANEL + GAP);  // size of the memory for products

// Computes the output of `count` transformed tiles from `first` on; adds `beside`, and sums `moments`.
inline void convolve(const float* points, const float* weights, float* products, float* out, const float* beside,
                     const Shape& s, long first, long count, const Moments* moments) {
    long size = plane(s.inputs), to_size = MOST_ROUNDED * PANEL + GAP;
    for (long o = 0; o < s.outputs; o += PANEL, weights += POINTS * s.inputs * PANEL) {
        for (long p = 0; p < POINTS; p++)
            for (long t = 0; t < count; t += ROWS)
                multiply(points + p * size + t * s.inputs, weights + p * s.inputs * PANEL,
                         products + p * to_size + t * PANEL, s.inputs);
        for (long v = 0; v < PANEL; v += LANES) {
            floats sum = {}, square = {}, origin = {};
            if (moments) origin = load(moments->origin + o + v);
            for (long t = 0; t < count; t++) {
                Tile tile(s, first + t);
                const float* from = products + t * PANEL + v;
                long place = ((tile.image * s.height + tile.y) * s.width + tile.x) * s.outputs + o + v;
                long down = std::min(PLACES, s.height - tile.y), across = std::min(PLACES, s.width - tile.x);
                floats tile_sum = {}, tile_square = {};
                in_both_directions<SIDE, PLACES>(
                    [](const floats* m, floats* y) { F::output(m, y); },
                    [&](long i, long j) { return load(from + (i * SIDE + j) * to_size); },
                    [&](long i, long j, floats x) {
                        if (i >= down || j >= across) return;
                        long at = place + (i * s.width + j) * s.outputs;
                        if (beside) x += load(beside + at);
                        store(out + at, x);
                        if (!moments) return;
                        x -= origin;
                        tile_sum += x;
                        tile_square += x * x;
                    });
                sum += tile_sum;
                square += tile_square;
            }
            if (moments) {
                store(moments->sums + o + v, load(moments->sums + o + v) + sum);
                store(moments->squares + o + v, load(moments->squares + o + v) + square);
            }
        }
    }
}

// Adds the products of INPUTS inputs and 16 outputs over `count` tiles to sums [inputs][outputs].
template <long INPUTS>
inline void add_products(const float* in, const float* grad, float* sums, long count, long inputs, long outputs) {
    floats total[INPUTS][VECTORS] = {};
    for (long t = 0; t < count; t++, in += inputs, grad += outputs) {
        floats g[VECTORS];
#pragma GCC unroll 4
        for (long v = 0; v < VECTORS; v++) g[v] = load(grad + v * LANES);
#pragma GCC unroll 16
        for (long i = 0; i < INPUTS; i++)
#pragma GCC unroll 4
            for (long v = 0; v < VECTORS; v++) total[i][v] += in[i] * g[v];
    }
#pragma GCC unroll 16
    for (long i = 0; i < INPUTS; i++)
#pragma GCC unroll 4
        for (long v = 0; v < VECTORS; v++) {
            float* to = sums + i * outputs + v * LANES;
            store(to, load(to) + total[i][v]);
        }
}

// Adds the products of `count` tiles of the input and of the gradient to sums [POINTS][inputs][outputs].
inline void add_weight_gradient(const float* in, const float* grad, float* sums, long count, const Shape& s) {
    constexpr long MANY = LANES == 16 ? 16 : 6, FEW = LANES == 16 ? 16 : 4;
    for (long p = 0; p < POINTS; p++)
        for (long o = 0; o < s.outputs; o += PANEL) {
            const float *x = in + p * plane(s.inputs), *g = grad + p * plane(s.outputs) + o;
            float* to = sums + p * s.inputs * s.outputs + o;
            for (long i = 0; i < s.inputs;) {
                if ((s.inputs - i) % MANY == 0) {
                    add_products<MANY>(x + i, g, to + i * s.outputs, count, s.inputs, s.outputs);
                    i += MANY;
                } else {
                    add_products<FEW>(x + i, g, to + i * s.outputs, count, s.inputs, s.outputs);
                    i += FEW;
                }
            }
        }
}

// Adds up the threads' sums, one [POINTS][inputs][outputs] after another, and transforms them into the kernels' gradient.
inline void to_weight_gradient(const float* sums, int threads, float* grad_weight, const Shape& s, Span inputs) {
    for (long i = inputs.first; i < inputs.last; i++)
        for (long o = 0; o < s.outputs; o += LANES) {
            in_both_directions<SIDE, KERNEL>(
                [](const floats* m, floats* w) { F::columns(m, w); },
                [&](long y, long x) {
                    floats sum = {};
                    for (int thread = 0; thread < threads; thread++)
                        sum += load(sums + ((thread * POINTS + y * SIDE + x) * s.inputs + i) * s.outputs + o);
                    return sum;
                },
                [&](long y, long x, floats w) {
                    for (long lane = 0; lane < LANES; lane++)
                        grad_weight[(((o + lane) * KERNEL + y) * KERNEL + x) * s.inputs + i] = w[lane];
                });
        }
}

}  // namespace winograd_float32
