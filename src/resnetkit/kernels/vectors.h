// Vectors of float32 lanes, from float32 or bfloat16 memory. A vector is a register of the processor.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr long LANES = 16;
#elif defined(__AVX__)
constexpr long LANES = 8;
#else
constexpr long LANES = 4;
#endif
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

struct bfloat16 {
    uint16_t bits;
};

static inline floats load(const float* from) {
    floats x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

static inline void store(float* to, floats x) { std::memcpy(to, &x, sizeof x); }

static inline floats load(const bfloat16* from) {
    halves half;
    std::memcpy(&half, from, sizeof half);
    return (floats)(__builtin_convertvector(half, words) << 16);
}

static inline void store(bfloat16* to, floats x) {
    halves half;
#if defined(__AVX512BF16__)
    __m256bh rounded = _mm512_cvtneps_pbh((__m512)x);
    std::memcpy(&half, &rounded, sizeof half);
#else
    words bits = (words)x;
    words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
    words quiet = (bits >> 16) | 0x40;
    words is_nan = (words)(x != x);
    half = __builtin_convertvector((quiet & is_nan) | (rounded & ~is_nan), halves);
#endif
    std::memcpy(to, &half, sizeof half);
}

// `x` where `out` is over 0, else 0, as for ReLU. NaN in `out` counts as over 0, so that it is not hidden.
static inline floats let_through(floats x, floats out) { return (floats)((ints)x & ~(out <= 0)); }

static inline bfloat16 rounded(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (x != x) return {(uint16_t)(bits >> 16 | 0x40)};
    return {(uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
