// RoI align (arXiv:1703.06870, Sec. 3) of float32 maps [images][height][width][channels], as torchvision.ops.roi_align
// computes it with aligned=False: the value of a bin is the mean over samples x samples points, each interpolated
// between its four neighbours.
#pragma once
#include <algorithm>

#include "vectors.h"

namespace roi_align {

// Maps of the same images, one for each level of a pyramid. `Map` is const float* or float*.
template <class Map>
struct Levels {
    const Map* maps;
    const long* heights;
    const long* widths;
    const float* scales;  // size of the map / size of the image
    long channels;
};

// Places in a map between which a point lies in one direction, and their shares.
struct Between {
    long low, high;
    float of_low, of_high;

    Between(float at, long size) {
        of_low = of_high = 0, low = high = 0;
        if (at < -1 || at > size) return;  // outside, as nothing
        at = std::max(at, 0.0f);
        low = (long)at, high = low + 1;
        if (low >= size - 1) low = high = size - 1, at = low;
        of_high = at - low, of_low = 1 - of_high;
    }
};

// Calls use(bin, place, share) for each neighbour of each point: `place` is the index of a value of the map of `level`.
// A region is {image, left, top, right, bottom}, in pixels of the image.
template <class Map, class Use>
void visit(const Levels<Map>& levels, const float* region, long level, long bins, long samples, Use use) {
    float scale = levels.scales[level];
    long height = levels.heights[level], width = levels.widths[level], image = (long)region[0];
    float left = region[1] * scale, top = region[2] * scale;
    float across = std::max(region[3] * scale - left, 1.0f) / bins, down = std::max(region[4] * scale - top, 1.0f) / bins;
    for (long y = 0; y < bins; y++)
        for (long v = 0; v < samples; v++) {
            Between vertical(top + y * down + (v + 0.5f) * down / samples, height);
            for (long x = 0; x < bins; x++)
                for (long u = 0; u < samples; u++) {
                    Between horizontal(left + x * across + (u + 0.5f) * across / samples, width);
                    auto corner = [&](long row, long column, float share) {
                        if (share != 0)
                            use(y * bins + x, ((image * height + row) * width + column) * levels.channels,
                                share / (samples * samples));
                    };
                    corner(vertical.low, horizontal.low, vertical.of_low * horizontal.of_low);
                    corner(vertical.low, horizontal.high, vertical.of_low * horizontal.of_high);
                    corner(vertical.high, horizontal.low, vertical.of_high * horizontal.of_low);
                    corner(vertical.high, horizontal.high, vertical.of_high * horizontal.of_high);
                }
        }
}

// to += share * from, for the channels of a span, which are multiples of LANES.
inline void add(float* to, const float* from, float share, long first, long last) {
    for (long c = first; c < last; c += LANES) store(to + c, load(to + c) + load(from + c) * share);
}

}  // namespace roi_align
