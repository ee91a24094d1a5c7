// Preloaded into a node: its wall clock shows what the true one does and so many nanoseconds more as the file of eight
// bytes says that CLOCK_AHEAD names. The file is mapped, so each look at the clock is one sound look at the file.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *ahead;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CLOCK_AHEAD");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *map = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (map == MAP_FAILED) {
        fputs("CLOCK_AHEAD names no file of eight bytes\n", stderr);
        abort();
    }
    close(file);
    ahead = map;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = (int)syscall(SYS_clock_gettime, clock, time);
    if (result != 0 || clock != CLOCK_REALTIME || ahead == NULL) {
        return result;
    }
    int64_t shown = time->tv_sec * INT64_C(1000000000) + time->tv_nsec + *ahead;
    time->tv_sec = shown / 1000000000;
    time->tv_nsec = shown % 1000000000;
    return 0;
}
