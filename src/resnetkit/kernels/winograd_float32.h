// One thread's part of 3x3 convolutions of stride 1 and padding 1 in float32, by Winograd's F(4 x 4, 3 x 3): see tiles.h.
// Weights and their gradients are [outputs][3][3][inputs], which is channels_last memory.
#pragma once
#include "threads.h"
#include "tiles.h"

namespace winograd_float32 {

// Transforms weights to [outputs / 16][POINTS][inputs][16 outputs], where points are s.weight_plane() apart. For the
// backward pass, `s` has inputs and outputs exchanged, and the kernel is rotated by 180 degrees.
inline void transform_weights(const float* weight, float* points, const Shape& s, bool backwards, Span panels) {
    constexpr long TAPS = KERNEL * KERNEL;
    for (long panel = panels.first; panel < panels.last; panel++)
        for (long first = 0; first < s.inputs; first += PANEL) {
            float taps[PANEL][TAPS][PANEL];  // of inputs that are neighbours in memory
            for (long lane = 0; lane < PANEL; lane++)
                for (long tap = 0; tap < TAPS; tap++)
                    for (long i = 0; i < PANEL; i++)
                        taps[i][tap][lane] =
                            backwards ? weight[((first + i) * TAPS + TAPS - 1 - tap) * s.outputs + panel * PANEL + lane]
                                      : weight[((panel * PANEL + lane) * TAPS + tap) * s.inputs + first + i];
            for (long i = 0; i < PANEL; i++)
                for (long v = 0; v < VECTORS; v++) {
                    float* to = points + panel * POINTS * s.weight_plane() + (first + i) * PANEL + v * LANES;
                    in_both_directions<KERNEL, SIDE>(
                        [](const floats* w, floats* u) { F::weights(w[0], w[1], w[2], u); },
                        [&](long y, long x) { return load(taps[i][y * KERNEL + x] + v * LANES); },
                        [&](long, long, floats u) { store(to, u), to += s.weight_plane(); });
                }
        }
}

// Products of ROWS tiles [inputs / 16][ROWS][16], where blocks are BLOCK apart, and weights [inputs][16].
inline void multiply(const float* tiles, const float* weights, float* to, long inputs) {
    floats sums[ROWS][VECTORS] = {};
    for (long c = 0; c < inputs; c += PANEL, tiles += BLOCK)
        for (long i = 0; i < PANEL; i++, weights += PANEL) {
            floats w[VECTORS];
#pragma GCC unroll 4
            for (long v = 0; v < VECTORS; v++) w[v] = load(weights + v * LANES);
#pragma GCC unroll 12
            for (long r = 0; r < ROWS; r++)
#pragma GCC unroll 4
                for (long v = 0; v < VECTORS; v++) sums[r][v] += tiles[r * PANEL + i] * w[v];
        }
#pragma GCC unroll 12
    for (long r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (long v = 0; v < VECTORS; v++) store(to + r * PANEL + v * LANES, sums[r][v]);
}

// Sums over the places of LANES channels. Each tile is summed up separately first, since short sums are more exact.
struct Sums {
    floats first, second;
};

// The following structs say what `convolve` does with its outputs. It calls begin(c) and end(c, sums) before and after
// LANES channels from `c` on, and stores what use(x, at, sums) returns at the index `at` of the map.

// Sums up the output and its square, after `origin` is subtracted; [outputs] each.
struct Moments {
    const float* origin;
    float* sums;
    float* squares;
    floats zero = {};

    void begin(long c) { zero = load(origin + c); }
    floats use(floats x, long, Sums& tile) {
        floats d = x - zero;
        tile.first += d;
        tile.second += d * d;
        return x;
    }
    void end(long c, const Sums& total) {
        store(sums + c, load(sums + c) + total.first);
        store(squares + c, load(squares + c) + total.second);
    }
};

// Adds another map, if there is one.
struct Added {
    const float* map;

    void begin(long) {}
    floats use(floats x, long at, Sums&) { return map ? x + load(map + at) : x; }
    void end(long, const Sums&) {}
};

// Adds a number to each channel, if there are any.
struct Biased {
    const float* bias;
    floats added = {};

    void begin(long c) { added = bias ? load(bias + c) : floats{}; }
    floats use(floats x, long, Sums&) { return x + added; }
    void end(long, const Sums&) {}
};

// The output is the gradient of a batch norm with ReLU, whose input is `in` from the index `start` on. Sums up what
// normalization::add_products does; [channels] each.
struct Products {
    const Input& in;
    long start;
    float* sums;
    float* products;
    normalization::Affine normalized = {};
    floats mean = {};

    void begin(long c) { normalized = in.affine(c), mean = load(in.mean + c); }
    floats use(floats x, long at, Sums& tile) {
        const float* before = in.map + start + at;
        floats g = let_through(x, normalized(before));
        tile.first += g;
        tile.second += g * (load(before) - mean);
        return x;
    }
    void end(long c, const Sums& total) {
        store(sums + c, load(sums + c) + total.first);
        store(products + c, load(products + c) + total.second);
    }
};

// Computes the output of `count` transformed tiles from `first` on.
template <class Use>
void convolve(const float* points, const float* weights, float* products, float* out, const Shape& s, long first,
              long count, Use use) {
    long row = s.width * s.outputs;
    for (long o = 0; o < s.outputs; o += PANEL, weights += POINTS * s.weight_plane()) {
        for (long p = 0; p < POINTS; p++)
            for (long t = 0; t < count; t += ROWS)
                multiply(points + p * PLANE + t * PANEL, weights + p * s.weight_plane(),
                         products + p * PLANE + t * PANEL, s.inputs);
        for (long v = 0; v < PANEL; v += LANES) {
            use.begin(o + v);
            Sums total = {};
            Tile tile(s, first);
            for (long t = 0; t < count; t++, tile.next(s)) {
                const float* from = products + t * PANEL + v;
                long place = (tile.image * s.height + tile.y) * row + tile.x * s.outputs + o + v;
                auto finish = [&](long down, long across) __attribute__((always_inline)) {
                    Sums sums = {};
                    in_both_directions<SIDE, PLACES>(
                        [](const floats* m, floats* y) { F::output(m, y); },
                        [&](long y, long x) { return load(from + (x * SIDE + y) * PLANE); },
                        [&](long y, long x, floats v) {
                            if (y >= down || x >= across) return;
                            long at = place + y * row + x * s.outputs;
                            store(out + at, use.use(v, at, sums));
                        });
                    total.first += sums.first;
                    total.second += sums.second;
                };
                long down = s.height - tile.y, across = s.width - tile.x;
                if (down >= PLACES && across >= PLACES)
                    finish(PLACES, PLACES);
                else
                    finish(down, across);
            }
            use.end(o + v, total);
        }
    }
}

// Adds the products of INPUTS inputs and 16 outputs over `count` tiles to sums [inputs][outputs]. With `begin`, the sums
// have no values yet.
template <long INPUTS>
inline void add_products(const float* in, const float* grad, float* sums, long count, long outputs, bool begin) {
    floats total[INPUTS][VECTORS] = {};
    for (long t = 0; t < count; t++, in += PANEL, grad += PANEL) {
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
            store(to, begin ? total[i][v] : load(to) + total[i][v]);
        }
}

// Adds the products of `count` tiles of the input and of the gradient to sums [POINTS][inputs][outputs], where points are
// s.sum_plane() apart. With `begin`, the sums have no values yet.
inline void add_weight_gradient(const float* in, const float* grad, float* sums, long count, const Shape& s,
                                bool begin) {
    for (long p = 0; p < POINTS; p++, in += PLANE, grad += PLANE)
        for (long o = 0; o < s.outputs; o += PANEL)
            for (long i = 0; i < s.inputs; i += PANEL) {
                const float *x = in + i / PANEL * BLOCK, *g = grad + o / PANEL * BLOCK;
                float* to = sums + p * s.sum_plane() + i * s.outputs + o;
                if constexpr (LANES == 16) {
                    add_products<16>(x, g, to, count, s.outputs, begin);
                } else {  // as many as registers hold
                    add_products<6>(x, g, to, count, s.outputs, begin);
                    add_products<6>(x + 6, g, to + 6 * s.outputs, count, s.outputs, begin);
                    add_products<4>(x + 12, g, to + 12 * s.outputs, count, s.outputs, begin);
                }
            }
}

// Adds up the threads' sums, which are s.weight_points() apart, and transforms them into the kernels' gradient.
inline void to_weight_gradient(const float* sums, int threads, float* grad_weight, const Shape& s, Span inputs) {
    for (long i = inputs.first; i < inputs.last; i++)
        for (long o = 0; o < s.outputs; o += LANES) {
            in_both_directions<SIDE, KERNEL>(
                [](const floats* m, floats* w) { F::columns(m, w); },
                [&](long y, long x) {
                    floats sum = {};
                    for (int thread = 0; thread < threads; thread++)
                        sum += load(sums + thread * s.weight_points() + (x * SIDE + y) * s.sum_plane() +
                                    i * s.outputs + o);
                    return sum;
                },
                [&](long y, long x, floats w) {
                    for (long lane = 0; lane < LANES; lane++)
                        grad_weight[(((o + lane) * KERNEL + y) * KERNEL + x) * s.inputs + i] = w[lane];
                });
        }
}

}  // namespace winograd_float32
