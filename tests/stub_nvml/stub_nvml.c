/* A libnvidia-ml.so.1 without a card behind it: what it answers stands in the text file that STUB_NVML_STATE names,
 * read anew at each call. One fact a line, `word key=value ...`; a missing file is a host without cards.
 *
 *   host init=0 init_delay=0 kernel=570.1          what nvmlInit returns, after how many ms; version in the kernel
 *   card n=0 uuid=GPU-a name=NVIDIA_H200 total=.. reserved=.. used=.. (MiB) util=.. temp=.. power=.. (mW)
 *        error=0 delay=0 (ms, each question about it) grow=0 (fills that find the list grown) mig=0 recovery=-1
 *        no_util=0 no_processes=0 no_events=0; sticky=1: once lost, lost until the library is initialized anew
 *   mig n=0 slot=0 uuid=MIG-a gi=1 ci=0 total=.. reserved=.. used=..
 *   process n=0 slot=-1 kind=compute pid=.. used=.. (MiB; -1: not told)
 *   event seq=1 n=0 type=8 data=79 gi=4294967295 ci=4294967295
 *
 * -DLIBRARY="570.1" is its version: nvmlInit fails with 18 if the kernel has another. -DOLD leaves out what drivers
 * before 510 lack, -DANCIENT the process lists of before 470 too. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifndef LIBRARY
#define LIBRARY "570.1"
#endif
#define CARDS 16
#define SLOTS 8
#define ROWS 256
#define WHOLE 4294967295u
#define NOT_TOLD 0xFFFFFFFFFFFFFFFFull
#define MIB (1024ull * 1024ull)

enum { OK, UNINITIALIZED, INVALID, NOT_SUPPORTED, NO_PERMISSION, ALREADY, NOT_FOUND, INSUFFICIENT_SIZE, TIMED_OUT = 10 };

typedef struct { int there, error, delay, grow, mig, recovery, no_util, no_processes, no_events, sticky, util, temp, power;
  long long total, reserved, used; unsigned gi, ci; char uuid[80], name[80]; } Card;
typedef struct { int n, slot; char kind[16]; unsigned pid; long long used; } Row;
typedef struct { unsigned long long seq, type, data; int n; unsigned gi, ci; } Happened;
typedef struct { int init, init_delay; char kernel[32]; Card cards[CARDS], migs[CARDS][SLOTS]; Row rows[ROWS];
  int rows_n; Happened events[ROWS]; int events_n; } State;
typedef struct { unsigned long long seen; unsigned long long types[CARDS]; } Set;

static char handles[CARDS * (SLOTS + 1)];
static int opened, grown[CARDS], stuck[CARDS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static const char *text(const char *line, const char *key, char *into, size_t size) {
  size_t length = strlen(key);
  for (const char *at = line; (at = strstr(at, key)); at += length)
    if ((at == line || at[-1] == ' ') && at[length] == '=') {
      size_t n = strcspn(at + length + 1, " \n");
      snprintf(into, size, "%.*s", (int)n, at + length + 1);
      return into;
    }
  return NULL;
}

static long long number(const char *line, const char *key, long long missing) {
  char word[32];
  return text(line, key, word, sizeof word) ? strtoll(word, NULL, 0) : missing;
}

static void read_card(const char *line, Card *card) {
  *card = (Card){.there = 1, .error = number(line, "error", 0), .delay = number(line, "delay", 0),
    .grow = number(line, "grow", 0), .mig = number(line, "mig", 0), .recovery = number(line, "recovery", -1),
    .no_util = number(line, "no_util", 0), .no_processes = number(line, "no_processes", 0),
    .no_events = number(line, "no_events", 0), .sticky = number(line, "sticky", 0), .util = number(line, "util", 0), .temp = number(line, "temp", 30),
    .power = number(line, "power", 70000), .total = number(line, "total", 81920), .reserved = number(line, "reserved", 0),
    .used = number(line, "used", 0), .gi = number(line, "gi", WHOLE), .ci = number(line, "ci", WHOLE)};
  text(line, "uuid", card->uuid, sizeof card->uuid);
  text(line, "name", card->name, sizeof card->name);
  for (char *c = card->name; *c; c++) if (*c == '_') *c = ' ';
}

static void look(State *state) {
  char line[512];
  const char *path = getenv("STUB_NVML_STATE");
  memset(state, 0, sizeof *state);
  snprintf(state->kernel, sizeof state->kernel, "%s", LIBRARY);
  FILE *file = path ? fopen(path, "r") : NULL;
  while (file && fgets(line, sizeof line, file)) {
    int n = number(line, "n", 0), slot = number(line, "slot", -1);
    if (n < 0 || n >= CARDS || slot >= SLOTS) continue;
    if (!strncmp(line, "host ", 5)) {
      state->init = number(line, "init", 0);
      state->init_delay = number(line, "init_delay", 0);
      text(line, "kernel", state->kernel, sizeof state->kernel);
    } else if (!strncmp(line, "card ", 5)) {
      read_card(line, &state->cards[n]);
    } else if (!strncmp(line, "mig ", 4) && slot >= 0) {
      read_card(line, &state->migs[n][slot]);
    } else if (!strncmp(line, "process ", 8) && state->rows_n < ROWS) {
      Row *row = &state->rows[state->rows_n++];
      *row = (Row){.n = n, .slot = slot, .pid = number(line, "pid", 0), .used = number(line, "used", 0)};
      text(line, "kind", row->kind, sizeof row->kind);
    } else if (!strncmp(line, "event ", 6) && state->events_n < ROWS) {
      state->events[state->events_n++] = (Happened){.seq = number(line, "seq", 0), .type = number(line, "type", 8),
        .data = number(line, "data", 0), .n = n, .gi = number(line, "gi", WHOLE), .ci = number(line, "ci", WHOLE)};
    }
  }
  if (file) fclose(file);
}

static void nap(int ms) {
  struct timespec moment = {ms / 1000, (ms % 1000) * 1000000L};
  nanosleep(&moment, NULL);
}

/* The card or instance that a handle means, after its delay; the file may end the delay. */
static int card_of(void *handle, int asks, State *state, Card **card, int *n, int *slot) {
  long at = (char *)handle - handles;
  if (!opened) return UNINITIALIZED;
  if (at < 0 || at >= (long)sizeof handles) return INVALID;
  *n = at / (SLOTS + 1);
  *slot = at % (SLOTS + 1) - 1;
  for (int waited = 0;; waited += 20) {
    look(state);
    if (!asks || waited >= state->cards[*n].delay) break;
    nap(20);
  }
  *card = *slot < 0 ? &state->cards[*n] : &state->migs[*n][*slot];
  Card *whole = &state->cards[*n];
  if (whole->error && whole->sticky) stuck[*n] = whole->error;
  if (whole->error || stuck[*n]) return whole->error ? whole->error : stuck[*n];
  return (*card)->there ? OK : NOT_FOUND;
}

#define ASKED(asks) State state; Card *card; int n, slot; \
  int said = card_of(device, asks, &state, &card, &n, &slot); (void)n; (void)slot; if (said) return said

int nvmlInitWithFlags(unsigned flags) {
  State state;
  (void)flags;
  look(&state);
  for (int waited = 0; waited < state.init_delay; waited += 20) { nap(20); look(&state); }
  if (state.init) return state.init;
  if (strcmp(state.kernel, LIBRARY)) return 18;
  opened++;
  return OK;
}

int nvmlShutdown(void) {
  if (!opened) return UNINITIALIZED;
  if (!--opened) memset(stuck, 0, sizeof stuck);
  return OK;
}

const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : "an error of the stub"; }

int nvmlSystemGetDriverVersion(char *into, unsigned size) { snprintf(into, size, "%s", LIBRARY); return OK; }

int nvmlDeviceGetCount_v2(unsigned *count) {
  State state;
  if (!opened) return UNINITIALIZED;
  look(&state);
  if (state.init) return state.init;
  for (*count = CARDS; *count && !state.cards[*count - 1].there; --*count) continue;
  return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
  State state; Card *card; int n, slot;
  if (index >= CARDS) return INVALID;
  *device = handles + index * (SLOTS + 1);
  return card_of(*device, 0, &state, &card, &n, &slot);
}

int nvmlDeviceGetUUID(void *device, char *into, unsigned size) {
  ASKED(0);
  snprintf(into, size, "%s", card->uuid);
  return OK;
}

int nvmlDeviceGetName(void *device, char *into, unsigned size) {
  ASKED(0);
  snprintf(into, size, "%s", state.cards[n].name);
  return OK;
}

int nvmlDeviceGetMigMode(void *device, unsigned *now, unsigned *pending) {
  ASKED(0);
  if (!card->mig) return NOT_SUPPORTED;
  *now = *pending = 1;
  return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *count) { ASKED(0); *count = card->mig ? SLOTS : 0; return OK; }

int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned index, void **instance) {
  ASKED(0);
  if (index >= SLOTS || !state.migs[n][index].there) return NOT_FOUND;
  *instance = handles + n * (SLOTS + 1) + 1 + index;
  return OK;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *instance, void **device) {
  *device = handles + ((char *)instance - handles) / (SLOTS + 1) * (SLOTS + 1);
  return OK;
}

int nvmlDeviceGetGpuInstanceId(void *device, unsigned *id) { ASKED(0); *id = card->gi; return slot < 0 ? INVALID : OK; }
int nvmlDeviceGetComputeInstanceId(void *device, unsigned *id) { ASKED(0); *id = card->ci; return slot < 0 ? INVALID : OK; }

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;

int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) {
  ASKED(1);
  if (card->total < 0) return NOT_SUPPORTED;
  unsigned long long used = card->used + card->reserved;
  *memory = (Memory){card->total * MIB, (card->total - used) * MIB, used * MIB};
  return OK;
}

int nvmlDeviceGetUtilizationRates(void *device, unsigned *rates) {
  ASKED(1);
  if (slot >= 0 || card->no_util) return NOT_SUPPORTED;
  rates[0] = card->util;
  rates[1] = 0;
  return OK;
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) {
  ASKED(1);
  (void)sensor;
  *celsius = card->temp;
  return slot < 0 ? OK : INVALID;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
  ASKED(1);
  *milliwatts = card->power;
  return slot < 0 && card->power >= 0 ? OK : NOT_SUPPORTED;
}

typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } Info;

static int processes(void *device, const char *kind, unsigned *count, Info *infos) {
  ASKED(1);
  unsigned room = *count, found = 0;
  if (card->no_processes) return NOT_SUPPORTED;
  for (int i = 0; i < state.rows_n; i++) {
    Row *row = &state.rows[i];
    if (row->n != n || strcmp(row->kind, kind) || (slot >= 0 && row->slot != slot)) continue;
    if (infos && found < room)
      infos[found] = (Info){row->pid, row->used < 0 ? NOT_TOLD : (unsigned long long)row->used * MIB, card->gi, card->ci};
    found++;
  }
  *count = found;
  pthread_mutex_lock(&lock);
  int grew = infos && grown[n] < card->grow && ++grown[n];
  pthread_mutex_unlock(&lock);
  return grew || (found && (!infos || found > room)) ? INSUFFICIENT_SIZE : OK;
}

#ifndef ANCIENT
int nvmlDeviceGetComputeRunningProcesses_v2(void *device, unsigned *count, Info *infos) { return processes(device, "compute", count, infos); }
int nvmlDeviceGetGraphicsRunningProcesses_v2(void *device, unsigned *count, Info *infos) { return processes(device, "graphics", count, infos); }
#endif
#if !defined(OLD) && !defined(ANCIENT)
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, Info *infos) { return processes(device, "compute", count, infos); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, Info *infos) { return processes(device, "graphics", count, infos); }
int nvmlDeviceGetMPSComputeRunningProcesses_v3(void *device, unsigned *count, Info *infos) { return processes(device, "mps", count, infos); }

int nvmlDeviceGetMemoryInfo_v2(void *device, Memory2 *memory) {
  ASKED(1);
  if (memory->version != 0x02000028) return 25;
  if (card->total < 0) return NOT_SUPPORTED;
  *memory = (Memory2){memory->version, card->total * MIB, card->reserved * MIB,
    (card->total - card->reserved - card->used) * MIB, card->used * MIB};
  return OK;
}

typedef struct { unsigned field, scope; long long at, latency; int type, said; unsigned long long value; } Field;

int nvmlDeviceGetFieldValues(void *device, int count, Field *fields) {
  ASKED(1);
  for (int i = 0; i < count; i++) {
    fields[i].said = fields[i].field == 230 && card->recovery >= 0 ? OK : NOT_SUPPORTED;
    fields[i].value = card->recovery;
  }
  return OK;
}

int nvmlDeviceGetSupportedEventTypes(void *device, unsigned long long *types) {
  ASKED(0);
  *types = 0xC000 | 0x8 | 0x3;
  return card->no_events ? NOT_SUPPORTED : OK;
}

int nvmlEventSetCreate(Set **set) { *set = calloc(1, sizeof **set); return opened ? OK : UNINITIALIZED; }
int nvmlEventSetFree(Set *set) { free(set); return OK; }

int nvmlDeviceRegisterEvents(void *device, unsigned long long types, Set *set) {
  ASKED(0);
  set->types[n] = types;
  /* What happened before is never told. */
  for (int i = 0; i < state.events_n; i++) if (state.events[i].seq > set->seen) set->seen = state.events[i].seq;
  return OK;
}

typedef struct { void *device; unsigned long long type, data; unsigned gi, ci; } Event;

int nvmlEventSetWait_v2(Set *set, Event *event, unsigned timeout_ms) {
  for (unsigned waited = 0; waited <= timeout_ms; waited += 10) {
    State state;
    if (!opened) return UNINITIALIZED;
    look(&state);
    for (int i = 0; i < state.events_n; i++) {
      Happened *h = &state.events[i];
      if (h->seq <= set->seen || !(set->types[h->n] & h->type)) continue;
      set->seen = h->seq;
      *event = (Event){handles + h->n * (SLOTS + 1), h->type, h->data, h->gi, h->ci};
      return OK;
    }
    nap(10);
  }
  return TIMED_OUT;
}
#endif
