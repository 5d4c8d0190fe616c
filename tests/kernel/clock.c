/* The real-time clock of a process, so many days back as the file CLOCK_BACK has bytes. For LD_PRELOAD. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    const char *back = getenv("CLOCK_BACK");
    struct stat found;
    int status = syscall(SYS_clock_gettime, clock, now);

    if (clock == CLOCK_REALTIME && back && stat(back, &found) == 0)
        now->tv_sec -= found.st_size * 86400;
    return status;
}
