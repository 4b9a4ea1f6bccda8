// The functions that Python calls. Pointers are to whole maps; the work is divided between `threads` threads.
#include <algorithm>
#include <atomic>
#include <memory>

#include "normalization.h"
#include "newton_schulz.h"
#include "roi_align.h"
#include "strided.h"
#include "winograd.h"
#include "winograd_float32.h"

namespace {

using normalization::Norm;
using normalization::Slopes;

template <typename T>
void norm_forward(Norm norm, const T* in, const T* beside, T* out, float* running_mean, float* running_var,
                  float momentum, float epsilon, int threads) {
    std::vector<float> partial(2 * threads * norm.channels, 0.0f), origin(norm.channels);
    // The values of the first place are subtracted, so that precision is not lost if a mean is far from zero.
    for (long c = 0; c < norm.channels; c += LANES) store(&origin[c], load(in + c));
    parallel(threads, [&](Team team) {
        Span mine = team.span(norm.places);
        normalization::add_moments(in, origin.data(), &partial[2 * team.thread * norm.channels], mine, norm.channels);
        team.once([&] {
            normalization::finish_moments(norm, origin.data(), partial.data(), threads, running_mean, running_var,
                                          momentum, epsilon);
        });
        if (out) normalization::apply(norm, in, beside, out, mine);
    });
}

template <typename T>
void norm_backward(Norm norm, const T* grad_out, const T* in, const T* out, T* grad_in, T* grad_beside,
                   const float* products, float* grad_gain, float* grad_bias, int threads) {
    std::vector<float> partial(2 * threads * norm.channels, 0.0f);
    Slopes slopes(norm.channels);
    parallel(threads, [&](Team team) {
        Span mine = team.span(norm.places);
        if (!products)
            normalization::add_products(norm, grad_out, in, out, grad_beside, &partial[2 * team.thread * norm.channels],
                                        mine);
        team.once([&] {
            normalization::finish_products(norm, products ? products : partial.data(), products ? 1 : threads, slopes,
                                           grad_gain, grad_bias);
        });
        normalization::InputGradient<T> gradient = {&norm, &slopes, grad_out, in, out, grad_beside};
        normalization::input_gradient(gradient, grad_in + mine.first * norm.channels, mine);
    });
}

}  // namespace

// `out` may be null: the next convolution normalises its input itself, and so does the backward pass. `products` are the
// sums of normalization::add_products, [2][channels], or null.
#define NORM(NAME, T)                                                                                                  \
    extern "C" void norm_forward_##NAME(const T* in, const T* beside, T* out, long places, long channels,              \
                                        const float* gain, const float* bias, float* running_mean,                     \
                                        float* running_var, float* mean, float* inverse_std, float momentum,           \
                                        float epsilon, int relu, int threads) {                                        \
        norm_forward<T>({places, channels, gain, bias, mean, inverse_std, relu != 0}, in, beside, out, running_mean,   \
                        running_var, momentum, epsilon, threads);                                                      \
    }                                                                                                                  \
    extern "C" void norm_backward_##NAME(const T* grad_out, const T* in, const T* out, T* grad_in, T* grad_beside,     \
                                         long places, long channels, const float* gain, const float* bias,             \
                                         const float* mean, const float* inverse_std, const float* products,           \
                                         float* grad_gain, float* grad_bias, int relu, int threads) {                  \
        norm_backward<T>({places, channels, gain, bias, (float*)mean, (float*)inverse_std, relu != 0}, grad_out, in,   \
                         out, grad_in, grad_beside, products, grad_gain, grad_bias, threads);                          \
    }

NORM(float32, float)
NORM(bfloat16, bfloat16)

// Brings the singular values of `count` matrices, each [rows[i]][columns[i]], near 1, in place. If there are many, put the
// large ones last: threads begin at the end.
extern "C" void orthogonal(float* const* matrices, const long* rows, const long* columns, long count, float a, float b,
                           float c, int iterations, int threads) {
    std::atomic<long> left(count);
    parallel(threads, [&](Team) {
        for (long i; (i = --left) >= 0;) newton_schulz::make(matrices[i], rows[i], columns[i], {a, b, c}, iterations);
    });
}

// unit_forward for float32 maps of any size. `out` may be null, as for norm_forward.
extern "C" void unit_forward_float32(const winograd_float32::Input* in, const float* weight, const float* beside,
                                     float* y, float* out, long images, long height, long width, long inputs,
                                     long outputs, const float* gain, const float* bias, const float* origin,
                                     float* running_mean, float* running_var, float* mean, float* inverse_std,
                                     float momentum, float epsilon, int relu, int threads) {
    namespace w = winograd_float32;
    w::Shape s = {images, height, width, inputs, outputs};
    Norm norm = {images * height * width, outputs, gain, bias, mean, inverse_std, relu != 0};
    std::vector<float> partial(2 * threads * outputs, 0.0f), start(origin, origin + outputs);
    std::vector<float> weights(s.weight_points());
    parallel(threads, [&](Team team) {
        Span mine = team.span(images);
        w::transform_weights(weight, weights.data(), s, false, team.span(outputs / w::PANEL));
        long at_once = s.images_at_once(), places = height * width;
        float* products = scratch<float>(w::BLOCK + w::BLOCK * inputs / w::PANEL + s.padded(inputs));
        float* points = products + w::BLOCK;
        float* padded = points + w::BLOCK * inputs / w::PANEL;
        float* sums = &partial[2 * team.thread * outputs];
        w::Moments moments = {start.data(), sums, sums + outputs};
        team.wait();
        for (long image = mine.first; image < mine.last; image += at_once) {
            long now = std::min(at_once, mine.last - image);
            w::pad(padded, s, *in, image, now);
            for (long first = 0, last = now * s.tiles(); first < last; first += w::MOST_TILES) {
                long count = std::min(w::MOST_TILES, last - first);
                w::transform_input(padded, points, s, inputs, now, first, count);
                w::convolve(points, weights.data(), products, y + image * places * outputs, s, first, count, moments);
            }
        }
        team.once([&] {
            normalization::finish_moments(norm, start.data(), partial.data(), threads, running_mean, running_var,
                                          momentum, epsilon);
        });
        if (out) normalization::apply(norm, y, beside, out, {mine.first * places, mine.last * places});
    });
}

// unit_backward for float32 maps of any size. `out` may be null, and `products` are as for norm_backward. If the input is
// not normalised yet, `in_products` gets the sums of normalization::add_products for its batch norm, [2][inputs].
extern "C" void unit_backward_float32(const float* grad_out, const winograd_float32::Input* in, const float* weight,
                                      const float* y, const float* out, float* grad_in, float* grad_beside,
                                      const float* identity, float* grad_weight, long images, long height,
                                      long width, long inputs, long outputs, const float* gain, const float* bias,
                                      const float* mean, const float* inverse_std, const float* products,
                                      float* grad_gain, float* grad_bias, float* in_products, int relu, int threads) {
    namespace w = winograd_float32;
    w::Shape s = {images, height, width, inputs, outputs}, turned = {images, height, width, outputs, inputs};
    long places = height * width, at_once = s.images_at_once();
    Norm norm = {images * places, outputs, gain, bias, (float*)mean, (float*)inverse_std, relu != 0};
    Slopes slopes(outputs);
    std::vector<float> partial(2 * threads * outputs, 0.0f), in_partial(2 * threads * inputs, 0.0f);
    std::vector<float> weights(s.weight_points()), sums(s.weight_points() * threads, 0.0f);
    parallel(threads, [&](Team team) {
        Span mine = team.span(images);
        if (grad_in)
            w::transform_weights(weight, weights.data(), turned, true, team.span(inputs / w::PANEL));
        if (!products)
            normalization::add_products(norm, grad_out, y, out, grad_beside, &partial[2 * team.thread * outputs],
                                        {mine.first * places, mine.last * places});
        team.once([&] {
            normalization::finish_products(norm, products ? products : partial.data(), products ? 1 : threads, slopes,
                                           grad_gain, grad_bias);
        });
        long size = w::BLOCK * std::max(inputs, outputs) / w::PANEL;
        float* spare = scratch<float>(w::BLOCK + 2 * size + s.padded(inputs) + s.padded(outputs));
        float* points = spare + w::BLOCK;
        float* grad_points = points + size;
        float* padded = grad_points + size;
        float* padded_grad = padded + s.padded(inputs);
        float* own = &sums[s.weight_points() * team.thread];
        float* in_sums = &in_partial[2 * team.thread * inputs];
        for (long image = mine.first; image < mine.last; image += at_once) {
            long now = std::min(at_once, mine.last - image), at = image * places * inputs;
            w::pad(padded, s, *in, image, now);
            w::pad(padded_grad, s, outputs, image, now,
                   normalization::InputGradient<float>{&norm, &slopes, grad_out, y, out, grad_beside});
            for (long first = 0, last = now * s.tiles(); first < last; first += w::MOST_TILES) {
                long count = std::min(w::MOST_TILES, last - first);
                if (grad_in) {
                    w::transform_input(padded_grad, points, s, outputs, now, first, count);
                    if (in_products)
                        w::convolve(points, weights.data(), spare, grad_in + at, turned, first, count,
                                    w::Products{*in, at, in_sums, in_sums + inputs});
                    else
                        w::convolve(points, weights.data(), spare, grad_in + at, turned, first, count,
                                    w::Added{identity ? identity + at : nullptr});
                }
                w::transform_input(padded, points, s, inputs, now, first, count);
                w::transform_gradient(padded_grad, grad_points, s, outputs, now, first, count);
                w::add_weight_gradient(points, grad_points, own, count, s, false);
            }
        }
        team.once([&] {
            if (!in_products) return;
            for (long c = 0; c < 2 * inputs; c++) {
                double sum = 0;
                for (int thread = 0; thread < threads; thread++) sum += in_partial[2 * thread * inputs + c];
                in_products[c] = sum;
            }
        });
        w::to_weight_gradient(sums.data(), threads, grad_weight, s, team.span(inputs));
    });
}

// A plain convolution of float32 maps of any size. `bias` may be null. Threads divide the tiles, so that one image is work
// for all of them.
extern "C" void convolution_forward_float32(const float* in, const float* weight, const float* bias, float* out,
                                            long images, long height, long width, long inputs, long outputs,
                                            int threads) {
    namespace w = winograd_float32;
    w::Shape s = {images, height, width, inputs, outputs};
    std::unique_ptr<float[]> weights(new float[s.weight_points()]);
    parallel(threads, [&](Team team) {
        w::transform_weights(weight, weights.get(), s, false, team.span(outputs / w::PANEL));
        float* products = scratch<float>(w::BLOCK + w::BLOCK * inputs / w::PANEL + s.padded(inputs));
        float* points = products + w::BLOCK;
        float* padded = points + w::BLOCK * inputs / w::PANEL;
        team.wait();
        w::in_groups(s, team.span(images * s.tiles()), [&](long image, long now, Span tiles) {
            w::pad(padded, s, inputs, image, now, w::Plain{in});
            for (long first = tiles.first; first < tiles.last; first += w::MOST_TILES) {
                long count = std::min(w::MOST_TILES, tiles.last - first);
                w::transform_input(padded, points, s, inputs, now, first, count);
                w::convolve(points, weights.get(), products, out + image * height * width * outputs, s, first, count,
                            w::Biased{bias});
            }
        });
    });
}

// The gradients of convolution_forward's input and weight. grad_in may be null.
extern "C" void convolution_backward_float32(const float* grad_out, const float* in, const float* weight,
                                             float* grad_in, float* grad_weight, long images, long height, long width,
                                             long inputs, long outputs, int threads) {
    namespace w = winograd_float32;
    w::Shape s = {images, height, width, inputs, outputs}, turned = {images, height, width, outputs, inputs};
    std::unique_ptr<float[]> weights(new float[grad_in ? s.weight_points() : 0]);
    std::unique_ptr<float[]> sums(new float[s.weight_points() * threads]);
    int size = 1;
    parallel(threads, [&](Team team) {
        if (team.thread == 0) size = team.size;
        if (grad_in)
            w::transform_weights(weight, weights.get(), turned, true, team.span(inputs / w::PANEL));
        long block = w::BLOCK * std::max(inputs, outputs) / w::PANEL;
        float* spare = scratch<float>(w::BLOCK + 2 * block + s.padded(inputs) + s.padded(outputs));
        float* points = spare + w::BLOCK;
        float* grad_points = points + block;
        float* padded = grad_points + block;
        float* padded_grad = padded + s.padded(inputs);
        float* own = &sums[s.weight_points() * team.thread];
        bool begin = true;  // a thread without tiles leaves zeros
        if (Span mine = team.span(images * s.tiles()); mine.first == mine.last) std::fill(own, own + s.weight_points(), 0.0f);
        team.wait();
        w::in_groups(s, team.span(images * s.tiles()), [&](long image, long now, Span tiles) {
            w::pad(padded, s, inputs, image, now, w::Plain{in});
            w::pad(padded_grad, s, outputs, image, now, w::Plain{grad_out});
            for (long first = tiles.first; first < tiles.last; first += w::MOST_TILES) {
                long count = std::min(w::MOST_TILES, tiles.last - first);
                if (grad_in) {
                    w::transform_input(padded_grad, points, s, outputs, now, first, count);
                    w::convolve(points, weights.get(), spare, grad_in + image * height * width * inputs, turned, first,
                                count, w::Biased{nullptr});
                }
                w::transform_input(padded, points, s, inputs, now, first, count);
                w::transform_gradient(padded_grad, grad_points, s, outputs, now, first, count);
                w::add_weight_gradient(points, grad_points, own, count, s, begin);
                begin = false;
            }
        });
        team.wait();
        w::to_weight_gradient(sums.get(), size, grad_weight, s, team.span(inputs));
    });
}

// Values of `count` regions, [count][bins * bins][channels]. Region i, {image, left, top, right, bottom}, is in the map
// of levels[i].
extern "C" void roi_align_forward(const float* const* maps, const long* heights, const long* widths,
                                  const float* scales, long channels, const float* regions, const long* levels,
                                  long count, long bins, long samples, float* out, int threads) {
    roi_align::Levels<const float*> all = {maps, heights, widths, scales, channels};
    parallel(threads, [&](Team team) {
        Span mine = team.span(count);
        for (long i = mine.first; i < mine.last; i++) {
            float* to = out + i * bins * bins * channels;
            std::fill(to, to + bins * bins * channels, 0.0f);
            roi_align::visit(all, regions + 5 * i, levels[i], bins, samples, [&](long bin, long place, float share) {
                roi_align::add(to + bin * channels, maps[levels[i]] + place, share, 0, channels);
            });
        }
    });
}

// Adds the gradients of the maps to grad_maps. Threads divide the channels, so that each sum has one order.
extern "C" void roi_align_backward(const float* grad_out, float* const* grad_maps, const long* heights,
                                   const long* widths, const float* scales, long channels, const float* regions,
                                   const long* levels, long count, long bins, long samples, int threads) {
    roi_align::Levels<float*> all = {grad_maps, heights, widths, scales, channels};
    parallel(threads, [&](Team team) {
        Span mine = team.span(channels / LANES);
        for (long i = 0; i < count; i++) {
            const float* from = grad_out + i * bins * bins * channels;
            roi_align::visit(all, regions + 5 * i, levels[i], bins, samples, [&](long bin, long place, float share) {
                roi_align::add(grad_maps[levels[i]] + place, from + bin * channels, share, mine.first * LANES,
                               mine.last * LANES);
            });
        }
    });
}

#if defined(__AVX512BF16__)

namespace {

using winograd::F2;
using winograd::F4;

// Calls `run` with the transforms that need the fewest products, of those that support this size.
template <class Run>
void with_transforms(winograd::Shape s, Run run) {
    if (winograd::serves<F4>(s))
        run(F4());
    else
        run(F2());
}

}  // namespace

// Returns whether unit_forward and unit_backward support a convolution of maps of this size.
extern "C" int unit_serves(long height, long width, long inputs, long outputs) {
    winograd::Shape s = {1, height, width, inputs, outputs};
    return winograd::serves<F2>(s);  // F(4, 3) supports a part of these sizes
}

// Computes a 3x3 convolution, its batch norm, the addition of `beside` and ReLU. `in`, `y` and `out` are bfloat16 maps.
extern "C" void unit_forward_bfloat16(const bfloat16* in, const float* weight, const bfloat16* beside, bfloat16* y,
                                      bfloat16* out, long images, long height, long width, long inputs, long outputs,
                                      const float* gain, const float* bias, const float* origin, float* running_mean,
                                      float* running_var, float* mean, float* inverse_std, float momentum,
                                      float epsilon, int relu, int threads) {
    winograd::Shape s = {images, height, width, inputs, outputs};
    Norm norm = {images * height * width, outputs, gain, bias, mean, inverse_std, relu != 0};
    std::vector<float> partial(2 * threads * outputs, 0.0f), start(origin, origin + outputs);
    with_transforms(s, [&](auto transforms) {
        using F = decltype(transforms);
        winograd::Sizes<F> sizes(s);
        std::vector<bfloat16> weights(sizes.weight_points);
        parallel(threads, [&](Team team) {
            Span mine = team.span(images);
            winograd::transform_weights<F>(weight, weights.data(), inputs, outputs, false,
                                           team.span(outputs / LANES));
            bfloat16* points = scratch<bfloat16>(sizes.points);
            float* sums = &partial[2 * team.thread * outputs];
            winograd::Moments moments = {start.data(), sums, sums + outputs};
            winograd::Convolve convolve = winograd::convolution<F>(height, width, inputs);
            team.wait();
            for (long image = mine.first; image < mine.last; image++) {
                winograd::transform<F>(in + image * height * width * inputs, points, height, width, inputs);
                convolve(points, weights.data(), y + image * height * width * outputs, nullptr, s, &moments);
            }
            team.once([&] {
                normalization::finish_moments(norm, start.data(), partial.data(), threads, running_mean, running_var,
                                              momentum, epsilon);
            });
            normalization::apply(norm, y, beside, out, {mine.first * height * width, mine.last * height * width});
        });
    });
}

// Computes the gradients of unit_forward's inputs. grad_beside is null if there was no `beside`. grad_in may be null. If
// identity is not null, it is added to grad_in; it may be the same as grad_beside. Arguments without a name are those of
// unit_backward_float32, for inputs that are not normalised yet.
extern "C" void unit_backward_bfloat16(const bfloat16* grad_out, const bfloat16* in, const float* weight,
                                       const bfloat16* y, const bfloat16* out, bfloat16* grad_in,
                                       bfloat16* grad_beside, const bfloat16* identity, float* grad_weight, long images,
                                       long height, long width, long inputs, long outputs, const float* gain,
                                       const float* bias, const float* mean, const float* inverse_std, const float*,
                                       float* grad_gain, float* grad_bias, float*, int relu, int threads) {
    winograd::Shape s = {images, height, width, inputs, outputs}, turned = {images, height, width, outputs, inputs};
    long places = height * width, in_size = places * inputs, out_size = places * outputs;
    Norm norm = {images * places, outputs, gain, bias, (float*)mean, (float*)inverse_std, relu != 0};
    Slopes slopes(outputs);
    std::vector<float> partial(2 * threads * outputs, 0.0f);
    long at_once = std::max(1L, 512 / places);  // images whose weight gradients are summed up in registers
    with_transforms(s, [&](auto transforms) {
        using F = decltype(transforms);
        winograd::Sizes<F> sizes(s), back(turned);
        long in_points = sizes.pair_points, grad_points = back.padded_pair_points;
        std::vector<bfloat16> weights(sizes.weight_points);
        std::vector<float> sums(sizes.weight_points * threads, 0.0f);
        parallel(threads, [&](Team team) {
            Span mine = team.span(images);
            if (grad_in)
                winograd::transform_weights<F>(weight, weights.data(), outputs, inputs, true,
                                               team.span(inputs / LANES));
            normalization::add_products(norm, grad_out, y, out, grad_beside, &partial[2 * team.thread * outputs],
                                        {mine.first * places, mine.last * places});
            team.once([&] {
                normalization::finish_products(norm, partial.data(), threads, slopes, grad_gain, grad_bias);
            });
            bfloat16* points = scratch<bfloat16>(back.points + out_size + at_once * (in_points + grad_points));
            bfloat16* grad_y = points + back.points;
            bfloat16* pairs = grad_y + out_size;
            bfloat16* grad_pairs = pairs + at_once * in_points;
            float* own = &sums[sizes.weight_points * team.thread];
            winograd::Convolve convolve = winograd::convolution<F>(height, width, outputs);
            for (long first = mine.first; first < mine.last; first += at_once) {
                long count = std::min(at_once, mine.last - first);
                for (long i = 0; i < count; i++) {
                    long image = first + i;
                    normalization::InputGradient<bfloat16> gradient = {&norm, &slopes, grad_out, y, out, grad_beside};
                    normalization::input_gradient(gradient, grad_y, {image * places, (image + 1) * places});
                    if (grad_in) {
                        winograd::transform<F>(grad_y, points, height, width, outputs);
                        convolve(points, weights.data(), grad_in + image * in_size,
                                 identity ? identity + image * in_size : nullptr, turned, nullptr);
                    }
                    winograd::transform_pairs<F>(in + image * in_size, pairs + i * in_points, height, width, inputs);
                    winograd::transform_gradient<F>(grad_y, grad_pairs + i * grad_points, height, width, outputs);
                }
                winograd::add_weight_gradient<F>(pairs, grad_pairs, own, count, s);
            }
            team.wait();
            winograd::to_weight_gradient<F>(sums.data(), threads, grad_weight, s, team.span(inputs));
        });
    });
}

// Computes the gradients of a 3x3 convolution of stride 2; height and width are the output's. grad_in may be null.
extern "C" void strided_gradients(const bfloat16* grad, const bfloat16* in, const float* weight, bfloat16* grad_in,
                                  float* grad_weight, long images, long height, long width, long inputs, long outputs,
                                  int threads) {
    winograd::Shape s = {images, height, width, inputs, outputs};
    long size = strided::TAPS * inputs * outputs, in_size = 4 * height * width * inputs;
    long grad_size = height * width * outputs;
    std::vector<bfloat16> weights(size);
    std::vector<float> sums(size * threads, 0.0f);
    parallel(threads, [&](Team team) {
        Span blocks = team.span(inputs / LANES), mine = team.span(images);
        if (grad_in) strided::pack_weights(weight, weights.data(), s, blocks.first, blocks.last);
        bfloat16* padded = scratch<bfloat16>(strided::padded(s) + strided::in_pairs(s) + strided::grad_pairs(s));
        bfloat16* in_pairs = padded + strided::padded(s);
        bfloat16* grad_pairs = in_pairs + strided::in_pairs(s);
            team.wait();
        for (long image = mine.first; image < mine.last; image++) {
            if (grad_in) {
                strided::pad(grad + image * grad_size, padded, s);
                strided::input_gradient(padded, weights.data(), grad_in + image * in_size, s);
            }
            strided::to_in_pairs(in + image * in_size, in_pairs, s);
            strided::to_grad_pairs(grad + image * grad_size, grad_pairs, s);
            strided::add_weight_gradient(in_pairs, grad_pairs, &sums[size * team.thread], s);
        }
            team.wait();
        strided::to_weight_gradient(sums.data(), threads, grad_weight, s, team.span(inputs));
    });
}

#endif
