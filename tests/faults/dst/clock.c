/* For LD_PRELOAD: the wall clock is what the file VIRTUAL_CLOCK says (64 bits, microseconds); other clocks are as they
   were. The file is mapped once, so whoever writes it moves the clock of the process at once. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *said_us;

__attribute__((constructor)) static void map(void) {
  const char *path = getenv("VIRTUAL_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *mapped = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (mapped != MAP_FAILED) said_us = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
  if (!said_us || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return syscall(SYS_clock_gettime, clock, at);
  int64_t now_us = *said_us;
  at->tv_sec = now_us / 1000000;
  at->tv_nsec = now_us % 1000000 * 1000;
  return 0;
}

int gettimeofday(struct timeval *at, void *zone) {
  struct timespec now;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &now);
  at->tv_sec = now.tv_sec;
  at->tv_usec = now.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}

/* Valkey counts short times by the processor's own clock, if /proc/cpuinfo says that it has one: it must ask each time. */
FILE *fopen(const char *path, const char *mode) {
  static FILE *(*opens)(const char *, const char *);
  if (!opens) opens = (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, "fopen");
  if (said_us && !strcmp(path, "/proc/cpuinfo")) {
    errno = ENOENT;
    return NULL;
  }
  return opens(path, mode);
}

FILE *fopen64(const char *path, const char *mode) { return fopen(path, mode); }
