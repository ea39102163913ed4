#pragma once

// How the threads of a graph wait for each other at a barrier, included by ggml-cpu.c, which has atomics for MSVC too.
//
// There are hundreds of barriers in a token. The others mostly arrive within microseconds, so a thread looks for them
// for a while before it sleeps, as being woken takes longer. But when another program has got the processor of a thread
// that is still to come, looking makes it worse: the scheduler counts it as work, and a thread that has used its share
// by looking waits for whole time slices when there is something to do. A thread that slept is let in at once.

#include <limits.h>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(_WIN32)
#include <windows.h>
#else
#include <sched.h>
#endif

#define GGML_BARRIER_LOOKS 2000  // 40 to 100 microseconds, about twice what waking a thread takes

// Returns when *passed is no longer n_passed.
static inline void ggml_barrier_wait(atomic_int * passed, int n_passed, atomic_int * n_sleeping) {
    for (int i = 0; i < GGML_BARRIER_LOOKS; i++) {
        if (atomic_load_explicit(passed, memory_order_relaxed) != n_passed) {
            return;
        }
        ggml_thread_cpu_relax();
    }
#if defined(__linux__)
    // No waking is missed: this thread is counted first, and the kernel lets it sleep only if *passed has not changed.
    // The thread that changes *passed looks at the count afterwards.
    atomic_fetch_add_explicit(n_sleeping, 1, memory_order_seq_cst);
    while (atomic_load_explicit(passed, memory_order_seq_cst) == n_passed) {
        syscall(SYS_futex, passed, FUTEX_WAIT_PRIVATE, n_passed, NULL, NULL, 0);
    }
    atomic_fetch_sub_explicit(n_sleeping, 1, memory_order_relaxed);
#else
    (void) n_sleeping;
    while (atomic_load_explicit(passed, memory_order_relaxed) == n_passed) {
#if defined(_WIN32)
        SwitchToThread();
#else
        sched_yield();
#endif
    }
#endif
}

// Wakes those who sleep, after *passed has changed.
static inline void ggml_barrier_wake(atomic_int * passed, atomic_int * n_sleeping) {
#if defined(__linux__)
    if (atomic_load_explicit(n_sleeping, memory_order_seq_cst) > 0) {
        syscall(SYS_futex, passed, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
    }
#else
    (void) passed;
    (void) n_sleeping;
#endif
}
