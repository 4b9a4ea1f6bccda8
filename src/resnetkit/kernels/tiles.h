// Maps in float32 as Winograd's minimal filtering in both directions sees them: tiles of padded images, and their transformed
// values.
//
// F(4 x 4, 3 x 3) computes a tile of 4 x 4 places of the output from 6 x 6 places of the input, with 36 products instead of
// 144 for each pair of channels. See transforms.h. Maps are [images][height][width][channels] of any height and width:
// places of a tile outside the map are zeros, and are not stored. Channels are multiples of 16.
#pragma once
#include <algorithm>

#include "normalization.h"
#include "transforms.h"
#include "vectors.h"

namespace winograd_float32 {

using winograd::KERNEL;
typedef winograd::F4 F;

constexpr long PLACES = F::PLACES, AROUND = PLACES + 2;  // of the output and of the input, on each side of a tile
constexpr long SIDE = F::POINTS, POINTS = SIDE * SIDE;
constexpr long PANEL = 16;  // channels that are computed together
constexpr long VECTORS = PANEL / LANES;
constexpr long ROWS = LANES == 16 ? 12 : 6;  // tiles that are computed together, so that the sums fit into registers
constexpr long MOST_TILES = 48;              // tiles whose transformed values are in the cache at the same time
constexpr long GAP = 16;                     // planes of a power of two bytes would compete for the same lines of the cache
constexpr long PLANE = MOST_TILES * PANEL + GAP;  // the transformed values of one point, MOST_TILES tiles and a panel
constexpr long BLOCK = POINTS * PLANE;            // and of all points

// The input of a convolution: a map, or a map whose batch norm and ReLU are not applied yet, if there is a `gain`.
struct Input {
    const float* map;
    const float* gain;
    const float* bias;
    const float* mean;
    const float* inverse_std;

    normalization::Affine affine(long c) const { return {gain, bias, mean, inverse_std, c}; }
};

struct Shape {
    long images, height, width, inputs, outputs;

    long down() const { return (height + PLACES - 1) / PLACES; }
    long across() const { return (width + PLACES - 1) / PLACES; }
    long tiles() const { return down() * across(); }  // of an image
    // Of transformed weights [outputs / 16][POINTS][weight_plane], and of their sums [POINTS][sum_plane], for both directions.
    long weight_points() const { return POINTS * (inputs * outputs + GAP * std::max(inputs, outputs) / PANEL); }
    long weight_plane() const { return inputs * PANEL + GAP; }
    long sum_plane() const { return inputs * outputs + GAP; }

    // A padded image has a border of zeros around its tiles, one place on each side. It is one panel of the channels.
    long padded_row() const { return (PLACES * across() + 2) * PANEL; }
    long padded() const { return (PLACES * down() + 2) * padded_row(); }
    long padded(long channels) const { return images_at_once() * padded() * channels / PANEL; }  // of all panels

    // Images that a thread computes before it goes on to the next ones: enough for MOST_TILES tiles, but one at least.
    long images_at_once() const { return std::max(1L, MOST_TILES / tiles()); }
};

// Calls work(image, images, tiles) for groups of images that are computed together. `mine` are tiles of all images, and
// `tiles` those of them in the group, counted from its first image on.
template <class Work>
void in_groups(const Shape& s, Span mine, Work work) {
    long end = (mine.last + s.tiles() - 1) / s.tiles();
    for (long image = mine.first / s.tiles(); image < end; image += s.images_at_once()) {
        long images = std::min(s.images_at_once(), end - image), before = image * s.tiles();
        work(image, images, Span{std::max(mine.first - before, 0L), std::min(mine.last - before, images * s.tiles())});
    }
}

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

// Values of a map for `pad`: begin(c) is called before the values of LANES channels from `c` on are read.

struct Plain {
    const float* map = nullptr;

    void begin(long) {}
    floats value(long at) const { return load(map + at); }
};

struct Normalized {
    const Input* in = nullptr;
    normalization::Affine normalized = {};

    void begin(long c) { normalized = in->affine(c); }
    floats value(long at) const {
        floats x = normalized(in->map + at);
        return let_through(x, x);
    }
};

// Writes `count` padded images [channels / 16][images], from the image `first` of a map [images][places][channels] on.
template <class Values>
void pad(float* to, const Shape& s, long channels, long first, long count, Values values) {
    long row = s.padded_row(), used = s.width * PANEL;
    for (long c = 0; c < channels; c += PANEL) {
        Values panel[VECTORS];
        for (long v = 0; v < VECTORS; v++) panel[v] = values, panel[v].begin(c + v * LANES);
        for (long image = first; image < first + count; image++) {
            float* end = to + s.padded();
            std::memset(to, 0, row * sizeof(float));
            to += row;
            for (long y = 0; y < s.height; y++, to += row) {
                std::memset(to, 0, PANEL * sizeof(float));
                std::memset(to + PANEL + used, 0, (row - PANEL - used) * sizeof(float));
                long at = (image * s.height + y) * s.width * channels + c;
                for (long x = PANEL; x < PANEL + used; x += PANEL, at += channels)
#pragma GCC unroll 4
                    for (long v = 0; v < VECTORS; v++) store(to + x + v * LANES, panel[v].value(at + v * LANES));
            }
            std::memset(to, 0, (end - to) * sizeof(float));
            to = end;
        }
    }
}

inline void pad(float* to, const Shape& s, const Input& in, long first, long count) {
    if (in.gain)
        pad(to, s, s.inputs, first, count, Normalized{&in});
    else
        pad(to, s, s.inputs, first, count, Plain{in.map});
}

// Transforms SIDES x SIDES places of `count` tiles of `images` padded images, from the tile `first` on, to
// [channels / 16][POINTS][tiles][16]. They begin `inside` places from the beginning of a tile with its border.
template <long SIDES, class Transform>
inline void transform(const float* padded, float* points, const Shape& s, long channels, long images, long first,
                      long count, long inside, Transform one_direction) {
    long row = s.padded_row();
    for (long c = 0; c < channels; c += PANEL, padded += images * s.padded(), points += BLOCK) {
        Tile tile(s, first);
        for (long t = 0; t < count; t++, tile.next(s)) {
            const float* from = padded + tile.image * s.padded() + (tile.y + inside) * row + (tile.x + inside) * PANEL;
            for (long v = 0; v < PANEL; v += LANES) {
                float* to = points + t * PANEL + v;
                in_both_directions<SIDES, SIDE>(
                    one_direction, [&](long y, long x) { return load(from + y * row + x * PANEL + v); },
                    [&](long y, long x, floats value) { store(to + (x * SIDE + y) * PLANE, value); });
            }
        }
    }
}

inline void transform_input(const float* padded, float* points, const Shape& s, long channels, long images, long first,
                            long count) {
    transform<AROUND>(padded, points, s, channels, images, first, count, 0,
                      [](const floats* d, floats* v) { F::input(d, v); });
}

inline void transform_gradient(const float* padded, float* points, const Shape& s, long channels, long images,
                               long first, long count) {
    transform<PLACES>(padded, points, s, channels, images, first, count, 1,
                      [](const floats* g, floats* v) { F::gradient(g, v); });
}

}  // namespace winograd_float32
