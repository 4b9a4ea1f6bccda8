// Winograd's transforms of a row (Lavin and Gray, arXiv:1509.09308, Sec. 4.1: there the matrices of `input`, `weights` and
// `output` are the transpose of B, G, and the transpose of A). A tile is PLACES neighbouring places of an output row. The
// transforms turn it into POINTS values, for which a convolution is a product:
//     output(weights(w) * input(d))      is the tile of the output,
//     columns(input(d) * gradient(g))    is the part of the tile's gradient g in the gradient of the kernel's row,
// for PLACES + 2 places d of the input's row.
#pragma once
#include "vectors.h"

namespace winograd {

constexpr long KERNEL = 3;  // rows and columns

// F(2, 3), at the points 0, 1, -1 and infinity: it adds only two numbers at a time, so errors stay small.
struct F2 {
    static constexpr long PLACES = 2;  // places of the output
    static constexpr long POINTS = 4;  // products

    // Transforms PLACES + 2 places of the input.
    static void input(const floats d[4], floats v[POINTS]) {
        v[0] = d[0] - d[2];
        v[1] = d[1] + d[2];
        v[2] = d[2] - d[1];
        v[3] = d[1] - d[3];
    }
    static void weights(floats left, floats middle, floats right, floats u[POINTS]) {
        u[0] = left;
        u[1] = (left + middle + right) * 0.5f;
        u[2] = (left - middle + right) * 0.5f;
        u[3] = right;
    }
    static void output(const floats m[POINTS], floats y[PLACES]) {
        y[0] = m[0] + m[1] + m[2];
        y[1] = m[1] - m[2] - m[3];
    }
    // Transforms the gradient of PLACES places of the output.
    static void gradient(const floats g[PLACES], floats v[POINTS]) {
        v[0] = g[0];
        v[1] = g[0] + g[1];
        v[2] = g[0] - g[1];
        v[3] = -g[1];
    }
    // Transforms sums of products of `input` and `gradient` into the gradients of the kernel's columns.
    template <typename T>
    static void columns(const T m[POINTS], T to[KERNEL]) {
        to[0] = m[0] + (m[1] + m[2]) / 2;
        to[1] = (m[1] - m[2]) / 2;
        to[2] = (m[1] + m[2]) / 2 + m[3];
    }
};

// F(4, 3), at 0, A, -A, B, -B and infinity. Of the points that were tried, these have the smallest rounding errors; see
// docs/log.md.
struct F4 {
    static constexpr long PLACES = 4;
    static constexpr long POINTS = 6;
    static constexpr float A = 0.625f, B = 1.5f, AA = A * A, BB = B * B;
    static constexpr float BY_0 = 1 / (AA * BB), BY_A = 1 / (2 * AA * (AA - BB)), BY_B = 1 / (2 * BB * (BB - AA));

    static void input(const floats d[6], floats v[POINTS]) {
        floats even_a = d[4] - BB * d[2], odd_a = A * (d[3] - BB * d[1]);
        floats even_b = d[4] - AA * d[2], odd_b = B * (d[3] - AA * d[1]);
        v[0] = d[4] - (AA + BB) * d[2] + (AA * BB) * d[0];
        v[1] = even_a + odd_a;
        v[2] = even_a - odd_a;
        v[3] = even_b + odd_b;
        v[4] = even_b - odd_b;
        v[5] = d[5] - (AA + BB) * d[3] + (AA * BB) * d[1];
    }
    static void weights(floats left, floats middle, floats right, floats u[POINTS]) {
        u[0] = left * BY_0;
        u[1] = (left + AA * right + A * middle) * BY_A;
        u[2] = (left + AA * right - A * middle) * BY_A;
        u[3] = (left + BB * right + B * middle) * BY_B;
        u[4] = (left + BB * right - B * middle) * BY_B;
        u[5] = right;
    }
    static void output(const floats m[POINTS], floats y[PLACES]) {
        floats even_a = m[1] + m[2], odd_a = A * (m[1] - m[2]), even_b = m[3] + m[4], odd_b = B * (m[3] - m[4]);
        y[0] = m[0] + even_a + even_b;
        y[1] = odd_a + odd_b;
        y[2] = AA * even_a + BB * even_b;
        y[3] = AA * odd_a + BB * odd_b + m[5];
    }
    static void gradient(const floats g[PLACES], floats v[POINTS]) {
        floats even_a = g[0] + AA * g[2], odd_a = A * (g[1] + AA * g[3]);
        floats even_b = g[0] + BB * g[2], odd_b = B * (g[1] + BB * g[3]);
        v[0] = g[0];
        v[1] = even_a + odd_a;
        v[2] = even_a - odd_a;
        v[3] = even_b + odd_b;
        v[4] = even_b - odd_b;
        v[5] = g[3];
    }
    template <typename T>
    static void columns(const T m[POINTS], T to[KERNEL]) {
        T even_a = BY_A * (m[1] + m[2]), even_b = BY_B * (m[3] + m[4]);
        to[0] = BY_0 * m[0] + even_a + even_b;
        to[1] = A * BY_A * (m[1] - m[2]) + B * BY_B * (m[3] - m[4]);
        to[2] = AA * even_a + BB * even_b + m[5];
    }
};

}  // namespace winograd
