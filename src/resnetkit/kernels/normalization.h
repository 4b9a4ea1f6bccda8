// One thread's part of batch normalisation in training, with the addition of a shortcut and ReLU.
//
// A map is [places][channels], float32 or bfloat16. A place is a position in one image; channels are a multiple of 16.
// A thread's sums are float32; they are added up in double.
#pragma once
#include <cmath>

#include "threads.h"
#include "vectors.h"

namespace normalization {

constexpr long BLOCK = 32;  // places that are summed up in registers

struct Norm {
    long places, channels;
    const float* gain;
    const float* bias;
    float* mean;         // of the batch
    float* inverse_std;  // of the batch
    bool relu;
};

// Batch norm as one multiplication and one addition, for the channels from `c` on.
struct Affine {
    floats scale = {}, offset = {};

    Affine() = default;
    Affine(const float* gain, const float* bias, const float* mean, const float* inverse_std, long c) {
        scale = load(gain + c) * load(inverse_std + c);
        offset = load(bias + c) - load(mean + c) * scale;
    }

    template <typename T>
    floats operator()(const T* in) const {
        return load(in) * scale + offset;
    }
};

// Adds the sums of x - origin and of its square over a span of places to sums[0..channels] and sums[channels..].
template <typename T>
void add_moments(const T* in, const float* origin, float* sums, Span mine, long channels) {
    for (long p = mine.first; p < mine.last; p += BLOCK) {
        long end = p + BLOCK < mine.last ? p + BLOCK : mine.last;
        for (long c = 0; c < channels; c += LANES) {
            floats zero = load(origin + c), sum = {}, square = {};
            for (long q = p; q < end; q++) {
                floats x = load(in + q * channels + c) - zero;
                sum += x;
                square += x * x;
            }
            store(sums + c, load(sums + c) + sum);
            store(sums + channels + c, load(sums + channels + c) + square);
        }
    }
}

// Adds up the threads' moments, one [2][channels] after another, and updates the running statistics, if there are any.
inline void finish_moments(const Norm& norm, const float* origin, const float* partial, int threads, float* running_mean,
                           float* running_var, float momentum, float epsilon) {
    for (long c = 0; c < norm.channels; c++) {
        double sum = 0, square = 0;
        for (int t = 0; t < threads; t++) {
            sum += partial[2 * t * norm.channels + c];
            square += partial[(2 * t + 1) * norm.channels + c];
        }
        double shift = sum / norm.places, variance = square / norm.places - shift * shift;
        if (variance < 0) variance = 0;  // NaN stays NaN
        norm.mean[c] = origin[c] + shift;
        norm.inverse_std[c] = 1 / std::sqrt(variance + epsilon);
        if (running_mean) {
            double unbiased = norm.places > 1 ? variance * norm.places / (norm.places - 1) : variance;
            running_mean[c] += momentum * (norm.mean[c] - running_mean[c]);
            running_var[c] += momentum * ((float)unbiased - running_var[c]);
        }
    }
}

// out = relu(in normalised + beside) over a span of places.
template <typename T>
void apply(const Norm& norm, const T* in, const T* beside, T* out, Span mine) {
    for (long p = mine.first; p < mine.last; p += BLOCK) {
        long end = p + BLOCK < mine.last ? p + BLOCK : mine.last;
        for (long c = 0; c < norm.channels; c += LANES) {
            Affine normalized(norm.gain, norm.bias, norm.mean, norm.inverse_std, c);
            for (long q = p; q < end; q++) {
                long at = q * norm.channels + c;
                floats x = normalized(in + at);
                if (beside) x += load(beside + at);
                store(out + at, norm.relu ? let_through(x, x) : x);
            }
        }
    }
}

// The gradient before the ReLU at the place `at`; `out` is the result of `apply`. If `out` is null, it is computed again.
template <typename T>
inline floats behind_relu(const Norm& norm, const Affine& normalized, const T* grad_out, const T* in, const T* out,
                          long at) {
    floats g = load(grad_out + at);
    return norm.relu ? let_through(g, out ? load(out + at) : normalized(in + at)) : g;
}

// Sums of the gradient and of its product with in - mean, as in add_moments; writes the gradient of the shortcut.
template <typename T>
void add_products(const Norm& norm, const T* grad_out, const T* in, const T* out, T* grad_beside, float* sums,
                  Span mine) {
    for (long p = mine.first; p < mine.last; p += BLOCK) {
        long end = p + BLOCK < mine.last ? p + BLOCK : mine.last;
        for (long c = 0; c < norm.channels; c += LANES) {
            floats mean = load(norm.mean + c), sum = {}, product = {};
            Affine normalized(norm.gain, norm.bias, norm.mean, norm.inverse_std, c);
            for (long q = p; q < end; q++) {
                long at = q * norm.channels + c;
                floats g = behind_relu(norm, normalized, grad_out, in, out, at);
                if (grad_beside) store(grad_beside + at, g);
                sum += g;
                product += g * (load(in + at) - mean);
            }
            store(sums + c, load(sums + c) + sum);
            store(sums + norm.channels + c, load(sums + norm.channels + c) + product);
        }
    }
}

// The factors of the input's gradient, per channel: scale * (g - level - (in - mean) * slope).
struct Slopes {
    std::vector<float> scale, level, slope;
    explicit Slopes(long channels) : scale(channels), level(channels), slope(channels) {}
};

inline void finish_products(const Norm& norm, const float* partial, int threads, Slopes& slopes, float* grad_gain,
                            float* grad_bias) {
    for (long c = 0; c < norm.channels; c++) {
        double sum = 0, product = 0;
        for (int t = 0; t < threads; t++) {
            sum += partial[2 * t * norm.channels + c];
            product += partial[(2 * t + 1) * norm.channels + c];
        }
        double inverse = norm.inverse_std[c];
        grad_bias[c] = sum;
        grad_gain[c] = product * inverse;
        slopes.scale[c] = norm.gain[c] * inverse;
        slopes.level[c] = sum / norm.places;
        slopes.slope[c] = product / norm.places * inverse * inverse;
    }
}

// The gradient of the input. begin(c) is called before the values of LANES channels from `c` on are read.
template <typename T>
struct InputGradient {
    const Norm* norm = nullptr;
    const Slopes* slopes = nullptr;
    const T* grad_out = nullptr;
    const T* in = nullptr;
    const T* out = nullptr;
    const T* grad_beside = nullptr;
    Affine normalized = {};
    floats mean = {}, scale = {}, level = {}, slope = {};

    void begin(long c) {
        normalized = {norm->gain, norm->bias, norm->mean, norm->inverse_std, c};
        mean = load(norm->mean + c), scale = load(&slopes->scale[c]);
        level = load(&slopes->level[c]), slope = load(&slopes->slope[c]);
    }
    floats value(long at) const {
        floats g = grad_beside ? load(grad_beside + at) : behind_relu(*norm, normalized, grad_out, in, out, at);
        return scale * (g - level - (load(in + at) - mean) * slope);
    }
};

// The gradient of the input over a span of places; grad_in points to the first place of the span.
template <typename T>
void input_gradient(InputGradient<T> gradient, T* grad_in, Span mine) {
    long channels = gradient.norm->channels;
    for (long p = mine.first; p < mine.last; p += BLOCK) {
        long end = p + BLOCK < mine.last ? p + BLOCK : mine.last;
        for (long c = 0; c < channels; c += LANES) {
            gradient.begin(c);
            for (long q = p; q < end; q++)
                store(grad_in + (q - mine.first) * channels + c, gradient.value(q * channels + c));
        }
    }
}

}  // namespace normalization
