// Teams of threads by the OpenMP library that torch has loaded. openmp.py gives the library's functions. Kernels that
// linked an OpenMP library of their own would have a second pool of threads, and both pools would slow each other down.
#include "threads.h"

namespace {

// Functions of every OpenMP library.
int (*thread_num)();
int (*num_threads)();

// The interface of GNU's library, which LLVM's has too, except on Windows.
void (*gomp_parallel)(void (*run)(void*), void* data, unsigned threads, unsigned flags);
void (*gomp_barrier)();

// The interface of LLVM's and Intel's libraries.
struct Place {  // ident_t: the place in the source, for debuggers
    int32_t reserved, flags, more[2];
    const char* text;
};
constexpr int32_t KMPC = 2;  // KMP_IDENT_KMPC, a call by compiled code
Place here = {0, KMPC, {0, 0}, ";unknown;unknown;0;0;;"};
void (*kmpc_fork_call)(Place*, int32_t count, void (*run)(int32_t*, int32_t*, void*), ...);
void (*kmpc_push_num_threads)(Place*, int32_t thread, int32_t threads);
int32_t (*kmpc_global_thread_num)(Place*);
void (*kmpc_barrier)(Place*, int32_t thread);

struct Start {
    void (*run)(void* work, Team team);
    void* work;
};

void enter(void* data) {
    Start* start = (Start*)data;
    start->run(start->work, Team{thread_num(), num_threads()});
}

void enter_kmpc(int32_t*, int32_t*, void* data) { enter(data); }

}  // namespace

void Team::wait() const {
    if (size == 1) return;
    if (gomp_barrier)
        gomp_barrier();
    else
        kmpc_barrier(&here, kmpc_global_thread_num(&here));
}

void start_team(int threads, void (*run)(void* work, Team team), void* work) {
    Start start = {run, work};
    if (threads > 1 && gomp_parallel) {
        gomp_parallel(enter, &start, threads, 0);
    } else if (threads > 1 && kmpc_fork_call) {
        kmpc_push_num_threads(&here, kmpc_global_thread_num(&here), threads);
        kmpc_fork_call(&here, 1, enter_kmpc, &start);
    } else {
        run(work, Team{0, 1});
    }
}

// Takes omp_get_thread_num, omp_get_num_threads, GOMP_parallel and GOMP_barrier.
extern "C" void use_gomp(decltype(thread_num) number, decltype(num_threads) size, decltype(gomp_parallel) parallel,
                         decltype(gomp_barrier) barrier) {
    thread_num = number, num_threads = size, gomp_parallel = parallel, gomp_barrier = barrier;
}

// Takes omp_get_thread_num, omp_get_num_threads and, with __kmpc_ before their names, fork_call, push_num_threads,
// global_thread_num and barrier.
extern "C" void use_kmpc(decltype(thread_num) number, decltype(num_threads) size, decltype(kmpc_fork_call) fork,
                         decltype(kmpc_push_num_threads) push, decltype(kmpc_global_thread_num) global,
                         decltype(kmpc_barrier) barrier) {
    thread_num = number, num_threads = size, gomp_parallel = nullptr, gomp_barrier = nullptr;
    kmpc_fork_call = fork, kmpc_push_num_threads = push, kmpc_global_thread_num = global, kmpc_barrier = barrier;
}
