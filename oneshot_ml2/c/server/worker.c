/* See worker.h. */
#define _GNU_SOURCE

#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "driver_api.h"

/* ms that a process which is told to end may take. */
#define GRACE 2000u

static uint64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

uint64_t now_ms(void) { return now_ns() / 1000000u; }

/* In the worker ---------------------------------------------------------------------------------- */

struct place {
  uint8_t *data;
  vta_phy_addr_t address;
};

static struct {
  struct driver_api api;
  VTADeviceHandle device;
  struct exchange *exchange;
  struct place places[MOST_ALLOCATIONS];
  uint32_t count;
  int flush;
} mine;

static void give_back(void) {
  for (; mine.count > 0; mine.count--) mine.api.release(mine.places[mine.count - 1].data);
}

static struct reply allocate(const struct command *command) {
  struct reply reply = {0, 0};
  give_back();
  mine.flush = (command->flags & FLAG_FLUSH) && mine.api.flush != NULL && mine.api.invalidate != NULL;
  for (uint32_t i = 0; i < command->allocations; i++) {
    uint64_t size = mine.exchange->numbers[i];
    void *data = size > SIZE_MAX ? NULL : mine.api.alloc((size_t)size, (command->flags & FLAG_CACHED) != 0);
    if (data == NULL) break;
    mine.places[i].data = data;
    mine.places[i].address = mine.api.address(data);
    mine.exchange->numbers[i] = mine.places[i].address;
    mine.count = i + 1;
  }
  reply.length = mine.count;
  return reply;
}

static void move_in(const struct move *move) {
  struct place *place = &mine.places[move->allocation];
  mine.api.from_host(place->data + move->offset, move->source, move->size);
  if (mine.flush)
    mine.api.flush(place->data + move->offset, (vta_phy_addr_t)(place->address + move->offset), (int)move->size);
}

static void move_out(const struct move *move, uint8_t *target) {
  struct place *place = &mine.places[move->allocation];
  if (mine.flush)
    mine.api.invalidate(place->data + move->offset, (vta_phy_addr_t)(place->address + move->offset), (int)move->size);
  mine.api.to_host(target, place->data + move->offset, move->size);
}

static struct reply run(const struct command *command) {
  struct exchange *exchange = mine.exchange;
  struct reply reply = {0, RAN_BYTES};
  uint32_t repeats = command->count > 0 ? command->repeats : 0;
  for (uint32_t i = 0; i < command->before; i++) move_in(&exchange->moves[i]);
  for (uint32_t i = 0; i < repeats; i++) {
    uint64_t begin = now_ns();
    reply.status = mine.api.run(mine.device, (vta_phy_addr_t)command->address, command->count, command->wait);
    put64(exchange->out + reply.length, now_ns() - begin);
    put64(exchange->out + reply.length + 8, mine.api.cycles != NULL ? mine.api.cycles(mine.device) : 0);
    reply.length += RAN_EACH;
    if (reply.status == 0) continue;
    snprintf(exchange->text, sizeof exchange->text, "%s", mine.api.error != NULL ? mine.api.error(mine.device) : "");
    return reply;
  }
  put32(exchange->out, 0);
  put32(exchange->out + 4, repeats);
  for (uint32_t i = 0; i < command->after; i++) {
    const struct move *move = &exchange->moves[MOST_MOVES + i];
    move_out(move, exchange->out + reply.length);
    reply.length += move->size;
  }
  return reply;
}

static int open_driver(const char *path) {
  char *text = mine.exchange->text;
  text[0] = '\0';
  if (!driver_open(&mine.api, path, text, sizeof mine.exchange->text)) return 1;
  mine.device = mine.api.device_alloc();
  if (mine.device == NULL) {
    snprintf(text, sizeof mine.exchange->text, "VTADeviceAlloc gives no device");
    return 1;
  }
  if (mine.api.configuration != NULL) snprintf(text, sizeof mine.exchange->text, "%s", mine.api.configuration());
  return 0;
}

static void work(const char *path, struct exchange *exchange, int channel) {
  struct reply reply = {0, 0};
  mine.exchange = exchange;
  reply.status = open_driver(path);
  for (;;) {
    struct command command;
    if (send(channel, &reply, sizeof reply, MSG_NOSIGNAL) != (ssize_t)sizeof reply) break;
    if (recv(channel, &command, sizeof command, 0) != (ssize_t)sizeof command) break;
    reply = command.what == DO_ALLOCATE ? allocate(&command) : run(&command);
  }
  if (mine.device != NULL) {
    give_back();
    mine.api.device_free(mine.device);
  }
  _exit(0);
}

/* In the server ---------------------------------------------------------------------------------- */

int worker_init(struct worker *worker, const char *path) {
  memset(worker, 0, sizeof *worker);
  worker->path = path;
  worker->channel = worker->output = -1;
  worker->exchange =
      mmap(NULL, sizeof *worker->exchange, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  return worker->exchange != MAP_FAILED;
}

int worker_running(const struct worker *worker) { return worker->pid > 0; }

/* What only the new process does: descriptors, signals, and memory that is not its to write. */
static void become_worker(const struct worker *worker, const int *others, int output, pid_t parent) {
  static const int USUAL[] = {SIGTERM, SIGINT, SIGHUP, SIGCHLD};
  /* Whole pages of what the server alone writes. */
  size_t guarded = offsetof(struct exchange, out) / 4096u * 4096u;
  for (; *others >= 0; others++) close(*others);
  for (size_t i = 0; i < sizeof USUAL / sizeof USUAL[0]; i++) signal(USUAL[i], SIG_DFL);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(1);
  setpgid(0, 0);
  dup2(output, 1);
  dup2(output, 2);
  close(output);
  mprotect(worker->exchange, guarded, PROT_READ);
  if (worker->kept_size > 0) mprotect(worker->kept, worker->kept_size, PROT_READ);
}

int worker_begin(struct worker *worker, uint64_t limit_ms, const int *others) {
  int channel[2], output[2];
  pid_t parent = getpid();
  worker->allocations = 0;
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel) != 0) return 0;
  if (pipe2(output, O_CLOEXEC | O_NONBLOCK) != 0) {
    close(channel[0]), close(channel[1]);
    return 0;
  }
  worker->pid = fork();
  if (worker->pid == 0) {
    close(channel[0]), close(output[0]);
    become_worker(worker, others, output[1], parent);
    work(worker->path, worker->exchange, channel[1]);
  }
  close(channel[1]), close(output[1]);
  worker->channel = channel[0];
  worker->output = output[0];
  if (worker->pid < 0) {
    worker_end(worker, NULL, 0);
    return 0;
  }
  worker->deadline = now_ms() + limit_ms;
  return 1;
}

void worker_ask(struct worker *worker, const struct command *command, uint64_t limit_ms) {
  worker->deadline = now_ms() + limit_ms;
  /* If it is gone already, that is seen when the answer is looked for. */
  (void)!send(worker->channel, command, sizeof *command, MSG_NOSIGNAL);
}

enum worker_state worker_look(struct worker *worker, struct reply *reply) {
  ssize_t size = recv(worker->channel, reply, sizeof *reply, MSG_DONTWAIT);
  if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return WORKER_BUSY;
  if (size != (ssize_t)sizeof *reply) return WORKER_DIED;
  worker->deadline = 0;
  return WORKER_ANSWERED;
}

/* The last line of the log, with what comes before and behind it. */
static void last_line(const struct worker *worker, char *line, size_t size) {
  char text[LOG_BYTES + 1], *begin;
  uint32_t length = worker_log(worker, (uint8_t *)text, LOG_BYTES);
  while (length > 0 && (text[length - 1] == '\n' || text[length - 1] == '\r')) length--;
  text[length] = '\0';
  begin = strrchr(text, '\n');
  snprintf(line, size, "%.*s", (int)size - 1, begin == NULL ? text : begin + 1);
}

void worker_end(struct worker *worker, char *why, size_t why_size) {
  uint64_t end = now_ms() + GRACE;
  int status = 0, ended = 0;
  if (worker->channel >= 0) close(worker->channel);
  if (worker->pid > 0) {
    if (worker->deadline > 0) kill(worker->pid, SIGTERM);
    while (!(ended = waitpid(worker->pid, &status, WNOHANG) == worker->pid) && now_ms() < end) {
      const struct timespec pause = {0, 2000000};
      worker_listen(worker);
      nanosleep(&pause, NULL);
    }
    if (!ended) {
      kill(worker->pid, SIGKILL);
      waitpid(worker->pid, &status, 0);
    }
  }
  worker_listen(worker);
  if (worker->output >= 0) close(worker->output);
  worker->pid = 0;
  worker->channel = worker->output = -1;
  worker->deadline = 0;
  worker->allocations = 0;
  if (why == NULL) return;
  if (WIFSIGNALED(status)) {
    snprintf(why, why_size, "the driver's process died of signal %d", WTERMSIG(status));
  } else {
    snprintf(why, why_size, "the driver's process ended with %d", WEXITSTATUS(status));
  }
  if (worker->logged > 0) {
    size_t length = strlen(why);
    char line[200];
    last_line(worker, line, sizeof line);
    snprintf(why + length, why_size - length, ", saying '%s'", line);
  }
}

/* The log ---------------------------------------------------------------------------------------- */

static void keep(struct worker *worker, const char *text, size_t size) {
  for (size_t i = 0; i < size; i++) worker->log[worker->logged++ % LOG_BYTES] = text[i];
  (void)!write(2, text, size);
}

void worker_note(struct worker *worker, const char *line) {
  char text[600];
  int length = snprintf(text, sizeof text, "vta-server: %s\n", line);
  keep(worker, text, (size_t)length < sizeof text ? (size_t)length : sizeof text - 1);
}

void worker_listen(struct worker *worker) {
  char text[512];
  ssize_t size;
  if (worker->output < 0) return;
  while ((size = read(worker->output, text, sizeof text)) > 0) keep(worker, text, (size_t)size);
}

uint32_t worker_log(const struct worker *worker, uint8_t *out, uint32_t size) {
  uint64_t length = worker->logged < LOG_BYTES ? worker->logged : LOG_BYTES;
  if (length > size) length = size;
  for (uint64_t i = 0; i < length; i++) out[i] = (uint8_t)worker->log[(worker->logged - length + i) % LOG_BYTES];
  return (uint32_t)length;
}
