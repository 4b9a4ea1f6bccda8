// Resizing by convolution, to the bit what Pillow's Image.resize makes of 8-bit pixels: a filter as wide as an output
// pixel, weights in fixed point, across first, then down, rounded to 8 bits in between (Pillow, src/libImaging/Resample.c).
// Only the pixels of a window are computed, and of the source only what they need is read.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

namespace {

constexpr int BITS = 32 - 8 - 2;  // of a weight behind its point: a sum over 8-bit pixels, with a sign, fits into 32
constexpr int HALF = 1 << (BITS - 1);
constexpr int BLOCK = 64;  // sums that stay in registers
constexpr int ROWS = 4;    // that go across together

typedef int32_t Four __attribute__((vector_size(16)));
typedef uint8_t FourBytes __attribute__((vector_size(4)));

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

// How output pixels along one side come from input pixels: each from as many, beginning at `first`.
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
            int before = std::max(first[i] + count - size, 0);  // of no weight, so that all have as many
            first[i] -= before;
            int* fixed = &weights[static_cast<size_t>(i) * count + before];
            for (int t = 0; t < taps; ++t) {
                double weight = (sum != 0.0 ? exact[t] / sum : exact[t]) * (1 << BITS);
                fixed[t] = static_cast<int>(weight < 0 ? weight - 0.5 : weight + 0.5);
            }
        }
    }

    void reverse() {
        int outputs = static_cast<int>(first.size());
        for (int i = 0, j = outputs - 1; i < j; ++i, --j) {
            std::swap(first[i], first[j]);
            std::swap_ranges(&weights[static_cast<size_t>(i) * count], &weights[static_cast<size_t>(i) * count] + count,
                             &weights[static_cast<size_t>(j) * count]);
        }
    }

    const int* weights_of(int i) const { return &weights[static_cast<size_t>(i) * count]; }
};

inline uint8_t clipped(int sum) { return static_cast<uint8_t>(std::clamp(sum >> BITS, 0, 255)); }

// Rows across, for three channels. Reads a byte after each pixel, and writes one after the last.
template <int ROWS>
void across_colors(const uint8_t* in, long stride, uint8_t* out, size_t out_stride, const Taps& taps, int width) {
    for (int x = 0; x < width; ++x) {
        const int* weights = taps.weights_of(x);
        const uint8_t* pixel = in + 3 * taps.first[x];
        Four sums[ROWS];
        for (Four& sum : sums) sum = Four{HALF, HALF, HALF, HALF};
        for (int t = 0; t < taps.count; ++t, pixel += 3) {
            for (int row = 0; row < ROWS; ++row) {
                FourBytes bytes;
                std::memcpy(&bytes, pixel + row * stride, 4);
                sums[row] += __builtin_convertvector(bytes, Four) * weights[t];
            }
        }
        for (int row = 0; row < ROWS; ++row) {
            Four sum = sums[row] >> BITS;
            sum = sum < 0 ? Four{} : sum;
            sum = sum > 255 ? Four{255, 255, 255, 255} : sum;
            FourBytes bytes = __builtin_convertvector(sum, FourBytes);
            std::memcpy(out + row * out_stride + 3 * x, &bytes, 4);
        }
    }
}

void across_grey(const uint8_t* in, uint8_t* out, const Taps& taps, int width) {
    for (int x = 0; x < width; ++x) {
        const int* weights = taps.weights_of(x);
        int sum = HALF;
        for (int t = 0; t < taps.count; ++t) sum += in[taps.first[x] + t] * weights[t];
        out[x] = clipped(sum);
    }
}

// One row down: weighted rows of `stride` bytes, added.
void down(const uint8_t* rows, size_t stride, uint8_t* out, const int* weights, int taps, int bytes) {
    for (int begin = 0; begin < bytes; begin += BLOCK) {
        int sums[BLOCK], length = std::min(BLOCK, bytes - begin);
        std::fill(sums, sums + BLOCK, HALF);
        for (int t = 0; t < taps; ++t) {
            const uint8_t* row = rows + t * stride + begin;  // rows are padded: whole blocks can be read
            for (int i = 0; i < BLOCK; ++i) sums[i] += row[i] * weights[t];
        }
        uint8_t block[BLOCK];
        for (int i = 0; i < BLOCK; ++i) block[i] = clipped(sums[i]);
        std::memcpy(out + begin, block, length);
    }
}

}  // namespace

// `in` has rows of `stride` bytes, pixels without gaps; `box` is left, top, right, bottom; the box is brought to
// out_width x out_height, of which the window (left, top, width, height) is written to `out`, row after row, mirrored
// left and right or not.
extern "C" void resample(const uint8_t* in, long stride, int width, int height, int channels, int filter,
                         const float* box, int out_width, int out_height, const int* window, int mirrored, uint8_t* out) {
    Taps x_taps(FILTERS[filter], width, box[0], box[2], out_width, window[0], window[2]);
    if (mirrored) x_taps.reverse();
    Taps y_taps(FILTERS[filter], height, box[1], box[3], out_height, window[1], window[3]);
    auto [lowest, highest] = std::minmax_element(y_taps.first.begin(), y_taps.first.end());
    int top = *lowest, bottom = *highest + y_taps.count;
    int bytes = window[2] * channels;
    size_t padded = static_cast<size_t>((bytes + BLOCK) / BLOCK) * BLOCK;
    std::unique_ptr<uint8_t[]> between(new uint8_t[padded * (bottom - top)]);
    std::unique_ptr<uint8_t[]> last(new uint8_t[static_cast<size_t>(width) * channels + 1]);
    for (int y = top; y < bottom;) {
        const uint8_t* row = in + y * stride;
        uint8_t* across = &between[(y - top) * padded];
        int rows = 1;
        if (channels == 1) {
            across_grey(row, across, x_taps, window[2]);
        } else if (y + ROWS < bottom) {
            across_colors<ROWS>(row, stride, across, padded, x_taps, window[2]);
            rows = ROWS;
        } else {
            std::memcpy(last.get(), row, static_cast<size_t>(width) * channels);  // after it, there may be nothing
            across_colors<1>(last.get(), 0, across, padded, x_taps, window[2]);
        }
        y += rows;
    }
    for (int y = 0; y < window[3]; ++y)
        down(&between[(y_taps.first[y] - top) * padded], padded, out + static_cast<size_t>(y) * bytes,
             y_taps.weights_of(y), y_taps.count, bytes);
}
