// Muon's Newton-Schulz iteration, which brings a matrix near the nearest orthogonal one. One thread computes one matrix.
//
// Matrices are float32, row after row. Rows and columns are multiples of 16; there are at most as many rows as columns.
#pragma once
#include <algorithm>
#include <cmath>

#include "threads.h"
#include "vectors.h"

namespace newton_schulz {

constexpr long TILE = 8;  // rows of a product that are computed together

// out[rows][columns] = by_left * left[rows][inner] * right[inner][columns] + by_added * added; `added` may be `out`.
inline void multiply(const float* left, const float* right, float* out, long rows, long inner, long columns,
                     float by_left, const float* added, float by_added) {
    for (long r = 0; r < rows; r += TILE)
        for (long c = 0; c < columns; c += LANES) {
            floats sums[TILE] = {};
            for (long i = 0; i < inner; i++) {
                floats x = load(right + i * columns + c);
                for (long t = 0; t < TILE; t++) sums[t] += left[(r + t) * inner + i] * x;
            }
            for (long t = 0; t < TILE; t++) {
                floats sum = by_left * sums[t];
                if (added) sum += by_added * load(added + (r + t) * columns + c);
                store(out + (r + t) * columns + c, sum);
            }
        }
}

inline float sum_of(floats x) {
    float sum = 0;
    for (long i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

// out[rows][rows] = x xᵀ.
inline void gram(const float* x, float* out, long rows, long columns) {
    constexpr long BLOCK = 4;
    for (long r = 0; r < rows; r += BLOCK)
        for (long s = 0; s <= r; s += BLOCK) {
            floats sums[BLOCK][BLOCK] = {};
            for (long c = 0; c < columns; c += LANES)
                for (long j = 0; j < BLOCK; j++) {
                    floats other = load(x + (s + j) * columns + c);
                    for (long i = 0; i < BLOCK; i++) sums[i][j] += load(x + (r + i) * columns + c) * other;
                }
            for (long i = 0; i < BLOCK; i++)
                for (long j = 0; j < BLOCK; j++)
                    out[(r + i) * rows + s + j] = out[(s + j) * rows + r + i] = sum_of(sums[i][j]);
        }
}

// Brings the singular values of x near 1, in place, by x <- (a + b g + c g²) x with g = x xᵀ; only g is iterated.
inline void make(float* x, long rows, long columns, const float (&coefficients)[3], int iterations) {
    auto [a, b, c] = coefficients;
    long square = rows * rows;
    float* g = scratch<float>(4 * square + rows * columns);
    float *factor = g + square, *product = factor + square, *spare = product + square, *made = spare + square;
    gram(x, g, rows, columns);
    double trace = 0;
    for (long r = 0; r < rows; r++) trace += g[r * rows + r];
    for (long i = 0; i < square; i++) g[i] = g[i] / (float)(trace + 1e-14);
    for (int iteration = 0; iteration < iterations; iteration++) {
        multiply(g, g, factor, rows, rows, rows, c, g, b);
        for (long r = 0; r < rows; r++) factor[r * rows + r] += a;
        if (iteration) {
            multiply(factor, product, spare, rows, rows, rows, 1, nullptr, 0);
            std::swap(product, spare);
        } else {
            std::copy(factor, factor + square, product);
        }
        if (iteration == iterations - 1) break;
        multiply(factor, g, spare, rows, rows, rows, 1, nullptr, 0);
        multiply(spare, factor, g, rows, rows, rows, 1, nullptr, 0);
    }
    float scale = 1 / (std::sqrt((float)trace) + 1e-7f);
    multiply(product, x, made, rows, rows, columns, scale, nullptr, 0);
    std::copy(made, made + rows * columns, x);
}

}  // namespace newton_schulz
