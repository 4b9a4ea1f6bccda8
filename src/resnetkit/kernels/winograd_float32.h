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

    // A padded image has a border of zeros around its tiles: one place on each side.
    long padded_width() const { return PLACES * across() + 2; }
    long padded(long channels) const { return (PLACES * down() + 2) * padded_width() * channels; }

    // Images that a thread computes before it goes on to the next ones: enough for MOST_TILES tiles, but one at least.
    long images_at_once() const { return std::max(1L, MOST_TILES / tiles()); }
};

// The size of the transformed values of one point and MOST_TILES tiles.
inline long plane(long channels) { return MOST_TILES * channels + GAP; }

// The first place of a tile.
struct Tile {
    long image, y, x;

    Tile(const Shape& s, long index)
        : image(index / s.tiles()),
          y(index % s.tiles() / s.across() * PLACES),
          x(index % s.across() * PLACES) {}

    // Goes on to the next tile.
    void next(const Shape& s) {
        if ((x += PLACES) < s.width) return;
        x = 0;
        if ((y += PLACES) < s.height) return;
        y = 0, image++;
    }
};

// Applies a transform to the rows of FROM x FROM vectors, and then to the columns: TO x TO vectors. `from` returns the
// vector of a row and a column; `to` gets the results, one column after another.
template <long FROM, long TO, class Transform, class From, class To>
inline __attribute__((always_inline)) void in_both_directions(Transform transform, From from, To to) {
    floats half[TO][FROM];
#pragma GCC unroll 6
    for (long y = 0; y < FROM; y++) {
        floats row[FROM], made[TO];
#pragma GCC unroll 6
        for (long x = 0; x < FROM; x++) row[x] = from(y, x);
        transform(row, made);
#pragma GCC unroll 6
        for (long x = 0; x < TO; x++) half[x][y] = made[x];
    }
#pragma GCC unroll 6
    for (long x = 0; x < TO; x++) {
        floats made[TO];
        transform(half[x], made);
#pragma GCC unroll 6
        for (long y = 0; y < TO; y++) to(y, x, made[y]);
    }
}

// Writes `count` padded images. write(row, to) writes a row, of which each image has `height`, to its places.
template <class Write>
void pad(float* to, const Shape& s, long channels, long count, Write write) {
    long row = s.width * channels, padded_row = s.padded_width() * channels;
    for (long image = 0; image < count; image++) {
        float* end = to + s.padded(channels);
        std::memset(to, 0, padded_row * sizeof(float));
        to += padded_row;
        for (long y = 0; y < s.height; y++, to += padded_row) {
            std::memset(to, 0, channels * sizeof(float));
            write(image * s.height + y, to + channels);
            std::memset(to + channels + row, 0, (padded_row - channels - row) * sizeof(float));
        }
        std::memset(to, 0, (end - to) * sizeof(float));
        to = end;
    }
}

// Transforms SIDES x SIDES places of `count` tiles of padded images to [POINTS][tiles][channels], from the tile `first`
// on. They begin `inside` places from the beginning of a tile with its border.
template <long SIDES, class Transform>
inline void transform(const float* padded, float* points, const Shape& s, long channels, long first, long count,
                      long inside, Transform one_direction) {
    long size = plane(channels), row = s.padded_width() * channels;
    Tile tile(s, first);
    for (long t = 0; t < count; t++, tile.next(s)) {
        const float* from = padded + tile.image * s.padded(channels) + (tile.y + inside) * row + (tile.x + inside) * channels;
        for (long c = 0; c < channels; c += LANES) {
            float* to = points + t * channels + c;
            in_both_directions<SIDES, SIDE>(
                one_direction, [&](long y, long x) { return load(from + y * row + x * channels + c); },
                [&](long, long, floats v) { store(to, v), to += size; });
        }
    }
}

inline void transform_input(const float* padded, float* points, const Shape& s, long channels, long first, long count) {
    transform<AROUND>(padded, points, s, channels, first, count, 0,
                      [](const floats* d, floats* v) { F::input(d, v); });
}

inline void transform_gradient(const float* padded, float* points, const Shape& s, long channels, long first,
                               long count) {
    transform<PLACES>(padded, points, s, channels, first, count, 1,
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
                    [&](long, long, floats u) { store(to, u), to += inputs * PANEL; });
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

// Transforms the products of a tile and 16 / VECTORS outputs into DOWN x ACROSS places; adds `beside`, and sums up moments.
struct Output {
    float* out;
    const float* beside;
    long row, channels;  // distances to the next row and to the next place
    floats origin, sum, square;

    inline __attribute__((always_inline)) void add(const float* products, long step, long down, long across) {
        floats tile_sum = {}, tile_square = {};
        in_both_directions<SIDE, PLACES>([](const floats* m, floats* y) { F::output(m, y); },
                                         [&](long y, long x) { return load(products + (x * SIDE + y) * step); },
                                         [&](long y, long x, floats v) {
                                             if (y >= down || x >= across) return;
                                             long at = y * row + x * channels;
                                             if (beside) v += load(beside + at);
                                             store(out + at, v);
                                             v -= origin;
                                             tile_sum += v;
                                             tile_square += v * v;
                                         });
        sum += tile_sum;
        square += tile_square;
    }
};

// Computes the output of `count` transformed tiles from `first` on; adds `beside`, and sums `moments`.
inline void convolve(const float* points, const float* weights, float* products, float* out, const float* beside,
                     const Shape& s, long first, long count, const Moments* moments) {
    constexpr long STEP = MOST_ROUNDED * PANEL + GAP;
    long size = plane(s.inputs), row = s.width * s.outputs;
    for (long o = 0; o < s.outputs; o += PANEL, weights += POINTS * s.inputs * PANEL) {
        for (long p = 0; p < POINTS; p++)
            for (long t = 0; t < count; t += ROWS)
                multiply(points + p * size + t * s.inputs, weights + p * s.inputs * PANEL,
                         products + p * STEP + t * PANEL, s.inputs);
        for (long v = 0; v < PANEL; v += LANES) {
            Output output = {nullptr, nullptr, row, s.outputs, {}, {}, {}};
            if (moments) output.origin = load(moments->origin + o + v);
            Tile tile(s, first);
            for (long t = 0; t < count; t++, tile.next(s)) {
                long place = (tile.image * s.height + tile.y) * row + tile.x * s.outputs + o + v;
                output.out = out + place;
                output.beside = beside ? beside + place : nullptr;
                long down = s.height - tile.y, across = s.width - tile.x;
                if (down >= PLACES && across >= PLACES)
                    output.add(products + t * PANEL + v, STEP, PLACES, PLACES);
                else
                    output.add(products + t * PANEL + v, STEP, down, across);
            }
            if (moments) {
                store(moments->sums + o + v, load(moments->sums + o + v) + output.sum);
                store(moments->squares + o + v, load(moments->squares + o + v) + output.square);
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
                        sum += load(sums + ((thread * POINTS + x * SIDE + y) * s.inputs + i) * s.outputs + o);
                    return sum;
                },
                [&](long y, long x, floats w) {
                    for (long lane = 0; lane < LANES; lane++)
                        grad_weight[(((o + lane) * KERNEL + y) * KERNEL + x) * s.inputs + i] = w[lane];
                });
        }
}

}  // namespace winograd_float32
