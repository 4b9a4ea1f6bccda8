// Division of work between threads. It depends only on the number of threads.
#pragma once
#include <omp.h>

#include <cstddef>
#include <cstdint>
#include <vector>

struct Span {
    long first, last;
};

// One thread's part of `count` items. The team may have fewer threads than requested (OMP_THREAD_LIMIT, OMP_DYNAMIC).
static inline Span span(long count, int thread, int team) {
    return {count * thread / team, count * (thread + 1) / team};
}

// Aligned memory of the calling thread, kept from call to call. It contains the values of the last call.
template <typename T>
T* scratch(size_t count) {
    thread_local std::vector<char> memory;
    size_t size = count * sizeof(T) + 64;
    if (memory.size() < size) memory.resize(size);
    return (T*)(((uintptr_t)memory.data() + 63) & ~(uintptr_t)63);
}
