// Threads, and the division of work between them, which depends only on the number of threads.
#pragma once
#include <omp.h>

#include <cstddef>
#include <cstdint>
#include <vector>

struct Span {
    long first, last;
};

// One thread of a team. The team may have fewer threads than requested (OMP_THREAD_LIMIT, OMP_DYNAMIC).
struct Team {
    int thread, size;

    // This thread's part of `count` items.
    Span span(long count) const { return {count * thread / size, count * (thread + 1) / size}; }

    // Waits for all threads of the team.
    void wait() const {
#pragma omp barrier
    }

    // Waits for all threads, runs `work` on one of them, and waits again.
    template <class Work>
    void once(Work work) const {
        wait();
        if (thread == 0) work();
        wait();
    }
};

// Runs work(team) on each thread of a team of `threads` threads.
template <class Work>
void parallel(int threads, Work work) {
#pragma omp parallel num_threads(threads)
    work(Team{omp_get_thread_num(), omp_get_num_threads()});
}

// Aligned memory of the calling thread, kept from call to call. It contains the values of the last call.
template <typename T>
T* scratch(size_t count) {
    thread_local std::vector<char> memory;
    size_t size = count * sizeof(T) + 64;
    if (memory.size() < size) memory.resize(size);
    return (T*)(((uintptr_t)memory.data() + 63) & ~(uintptr_t)63);
}
