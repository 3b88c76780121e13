/* Loaded before everything else into a process that simulates one seed: what the operating system gives as randomness (keys of hash maps,
 * tokio's choices, names) and as the time of day is the seed's, too, so that the same seed is the same run. The test builds it. */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

/* Records are stamped with it: it stands still. */
int clock_gettime(clockid_t clock, struct timespec *time) {
    if (clock == CLOCK_REALTIME) {
        *time = (struct timespec){.tv_sec = 1800000000};
        return 0;
    }
    return (int)syscall(SYS_clock_gettime, clock, time);
}

ssize_t getrandom(void *buffer, size_t length, unsigned int flags) {
    static _Thread_local uint64_t state;
    static _Thread_local int begun;
    (void)flags;
    if (!begun) {
        const char *seed = getenv("SEKS_SIM_RANDOM");
        state = seed ? strtoull(seed, NULL, 10) : 0;
        begun = 1;
    }
    for (size_t at = 0; at < length; at++) { /* SplitMix64, a byte of each */
        uint64_t z = state += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        ((uint8_t *)buffer)[at] = (uint8_t)(z ^ (z >> 31));
    }
    return (ssize_t)length;
}
