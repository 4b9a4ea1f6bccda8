// How work is shared between threads, the same way for the same number of them.
#pragma once
#include <omp.h>

#include <cstddef>
#include <cstdint>
#include <vector>

struct Span {
    long first, last;
};

// What one of a team's threads has of `count`. The team may be smaller than was asked for (OMP_THREAD_LIMIT, OMP_DYNAMIC).
static inline Span span(long count, int thread, int team) {
    return {count * thread / team, count * (thread + 1) / team};
}

// Memory of the calling thread, aligned, kept from call to call. What is in it is what the last call left.
template <typename T>
T* scratch(size_t count) {
    thread_local std::vector<char> memory;
    size_t size = count * sizeof(T) + 64;
    if (memory.size() < size) memory.resize(size);
    return (T*)(((uintptr_t)memory.data() + 63) & ~(uintptr_t)63);
}
