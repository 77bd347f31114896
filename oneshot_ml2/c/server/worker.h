/* The process that has the driver: it may hang, crash, or write where it must not, and is ended and begun anew.
 *
 * It is asked one thing at a time. What is written lies in memory that it cannot write to; what it reads, it leaves in
 * memory that both have.
 */
#ifndef WORKER_H
#define WORKER_H

#include <stdint.h>
#include <sys/types.h>

#include "frame.h"

#define MOST_ALLOCATIONS 1024u
#define MOST_REPEATS 1000u
#define LOG_BYTES 4096u
/* Of a run, before what was read: status, repeats; and of each repeat ns and cycles. */
#define RAN_BYTES 8u
#define RAN_EACH 16u

/* Bytes between a place in an allocation and a place here. */
struct move {
  uint32_t allocation, size;
  uint64_t offset;
  const uint8_t *source;
};

enum worker_flags { FLAG_CACHED = 1, FLAG_FLUSH = 2 };

struct command {
  enum { DO_ALLOCATE, DO_RUN } what;
  /* Allocations; moves before and after. */
  uint32_t flags, allocations, before, after;
  /* A run, if `count` is above 0. */
  uint64_t address;
  uint32_t count, wait, repeats;
};

struct reply {
  /* 0, or what VTADeviceRun returned; and the bytes in `out`. */
  int32_t status;
  uint32_t length;
};

/* What both processes have: `out` and what follows, the worker may write. */
struct exchange {
  uint8_t in[BODY_BYTES];
  struct move moves[2 * MOST_MOVES];
  uint8_t out[BODY_BYTES];
  uint64_t numbers[MOST_ALLOCATIONS];
  char text[512];
};

struct worker {
  const char *path;
  struct exchange *exchange;
  /* More that it may only read. */
  void *kept;
  size_t kept_size;
  pid_t pid;
  int channel, output;
  /* When it must have answered, in ms; 0: it is not busy. */
  uint64_t deadline;
  uint32_t allocations;
  uint64_t sizes[MOST_ALLOCATIONS], addresses[MOST_ALLOCATIONS];
  char configuration[256];
  /* The last that the driver printed, a ring. */
  char log[LOG_BYTES];
  uint64_t logged;
};

/* What became of a question. */
enum worker_state { WORKER_BUSY, WORKER_ANSWERED, WORKER_DIED };

uint64_t now_ms(void);

/* 0 without memory for it. */
int worker_init(struct worker *worker, const char *path);

/* Begin the process: its first answer says whether the driver opens, with its configuration or why not in `text`.
 * 0: no process. `others`: descriptors that are not the worker's, ended by -1. */
int worker_begin(struct worker *worker, uint64_t limit_ms, const int *others);
int worker_running(const struct worker *worker);

void worker_ask(struct worker *worker, const struct command *command, uint64_t limit_ms);
/* Look for the answer, without waiting. */
enum worker_state worker_look(struct worker *worker, struct reply *reply);

/* End the process, which gives the driver back: told by SIGTERM first, so that a run may end. What is known of how it
 * ended comes to `why`, if that is not NULL. */
void worker_end(struct worker *worker, char *why, size_t why_size);

/* Take over what the driver has printed. */
void worker_listen(struct worker *worker);
/* The log, at most `size` bytes of its end; how many. */
uint32_t worker_log(const struct worker *worker, uint8_t *out, uint32_t size);
void worker_note(struct worker *worker, const char *line);

#endif
