/* What the client that has the board asks for. Every size is checked here, before the worker hears of it. */
#define _GNU_SOURCE

#include <stdio.h>
#include <string.h>

#include "server.h"
#include "vta_driver.h"

#define INSN_BYTES 16u
#define PLACE_BYTES 16u
#define PLACE_HASHED 48u
/* ms that the driver may take to open, and that moves may take where no run is asked for. */
#define OPEN_MS 60000u

static uint8_t *out_of(struct server *server) { return server->worker.exchange->out; }
static const uint8_t *in_of(struct server *server) { return server->worker.exchange->in; }

static void answer(struct server *server, uint32_t length) {
  server->asked = 0;
  if (server->active_gone) return;
  client_send(server, server->active, (uint8_t)(server->request.kind | ANSWER), server->request.id, length);
}

static void fail(struct server *server, enum frame_error code, const char *why) {
  server->asked = 0;
  if (server->active_gone) return;
  client_fail(server, server->active, server->request.id, code, why);
}

static void malformed(struct server *server, const char *why) { fail(server, E_MALFORMED, why); }

/* Places ---------------------------------------------------------------------------------------- */

/* An allocation, bytes and an offset at `at`, as a move; 0 if they are not within an allocation. */
static int read_place(struct server *server, const uint8_t *at, struct move *move) {
  const struct worker *worker = &server->worker;
  uint64_t there;
  move->allocation = get32(at);
  move->size = get32(at + 4);
  move->offset = get64(at + 8);
  move->source = NULL;
  if (move->allocation >= worker->allocations) return 0;
  there = worker->sizes[move->allocation];
  return move->size <= there && move->offset <= there - move->size;
}

static void ask(struct server *server, const struct command *command, uint64_t limit_ms) {
  server->asked = 1;
  worker_ask(&server->worker, command, limit_ms);
}

/* Requests -------------------------------------------------------------------------------------- */

static void begin_allocate(struct server *server) {
  struct command command = {DO_ALLOCATE, 0, 0, 0, 0, 0, 0, 0, 0};
  const uint8_t *body = in_of(server);
  uint32_t length = server->request.length, count;
  if (length < 8) {
    malformed(server, "an allocation needs flags and a number");
    return;
  }
  count = get32(body + 4);
  if (count > MOST_ALLOCATIONS || length != 8 + 8 * (uint64_t)count) {
    malformed(server, "an allocation of other sizes than it says, or of more than 1,024");
    return;
  }
  for (uint32_t i = 0; i < count; i++) {
    if (get64(body + 8 + 8 * i) != 0) continue;
    malformed(server, "an allocation of no bytes");
    return;
  }
  /* Only now: until then those that there are have their sizes. */
  server->worker.allocations = 0;
  for (uint32_t i = 0; i < count; i++)
    server->worker.sizes[i] = server->worker.exchange->numbers[i] = get64(body + 8 + 8 * i);
  command.flags = get32(body);
  command.allocations = count;
  ask(server, &command, server->settings.limit_ms < OPEN_MS ? server->settings.limit_ms : OPEN_MS);
}

/* Place contents that are known by their hash, and say which are not. */
static void begin_place(struct server *server) {
  struct command command = {DO_RUN, 0, 0, 0, 0, 0, 0, 0, 0};
  const uint8_t *body = in_of(server);
  uint32_t length = server->request.length, count = length < 8 ? 0 : get32(body);
  if (count == 0 || count > MOST_MOVES || length != 8 + PLACE_HASHED * count) {
    malformed(server, "not 1 to 256 places with their hashes");
    return;
  }
  for (uint32_t i = 0; i < count; i++) {
    const uint8_t *at = body + 8 + PLACE_HASHED * i;
    struct move move;
    if (!read_place(server, at, &move)) {
      malformed(server, "a place outside of the allocations");
      return;
    }
    move.source = pool_get(&server->pool, at + PLACE_BYTES, move.size);
    if (move.source != NULL) server->worker.exchange->moves[command.before++] = move;
  }
  ask(server, &command, OPEN_MS);
}

static void begin_put(struct server *server) {
  struct command command = {DO_RUN, 0, 0, 1, 0, 0, 0, 0, 0};
  const uint8_t *body = in_of(server), *content = body + PLACE_HASHED;
  uint32_t length = server->request.length;
  uint8_t hash[SHA256_BYTES];
  struct move move;
  if (length < PLACE_HASHED || length - PLACE_HASHED > CONTENT_BYTES || get32(body + 4) != length - PLACE_HASHED ||
      !read_place(server, body, &move)) {
    malformed(server, "contents of another size than they say, or outside of the allocations");
    return;
  }
  sha256_of(content, move.size, hash);
  if (!sha256_equal(hash, body + PLACE_BYTES)) {
    fail(server, E_DAMAGED, "the contents have another hash");
    return;
  }
  move.source = pool_put(&server->pool, hash, content, move.size);
  if (move.source == NULL) move.source = content;
  server->worker.exchange->moves[0] = move;
  ask(server, &command, OPEN_MS);
}

/* The places of a run, and whether the frame has exactly what they need. */
static int read_places(struct server *server, uint32_t begin, struct command *command) {
  const uint8_t *body = in_of(server), *at = body + begin;
  uint64_t size = begin + (uint64_t)PLACE_BYTES * (command->before + command->after);
  uint64_t out = RAN_BYTES + (command->count > 0 ? (uint64_t)RAN_EACH * command->repeats : 0);
  struct move *moves = server->worker.exchange->moves;
  if (size > server->request.length) return 0;
  for (uint32_t i = 0; i < command->before; i++, at += PLACE_BYTES) {
    struct move move;
    if (!read_place(server, at, &move) || move.size > server->request.length - size) return 0;
    move.source = body + size;
    size += move.size;
    moves[i] = move;
  }
  for (uint32_t i = 0; i < command->after; i++, at += PLACE_BYTES) {
    struct move *move = &moves[MOST_MOVES + i];
    if (!read_place(server, at, move) || move->size > BODY_BYTES - out) return 0;
    out += move->size;
  }
  return size == server->request.length;
}

/* Whether a program's instructions lie in one allocation. */
static int holds(const struct worker *worker, uint64_t address, uint64_t size) {
  for (uint32_t i = 0; i < worker->allocations; i++) {
    if (address < worker->addresses[i] || address - worker->addresses[i] > worker->sizes[i]) continue;
    if (size <= worker->sizes[i] - (address - worker->addresses[i])) return 1;
  }
  return 0;
}

static void begin_run(struct server *server) {
  enum { FIXED = 32 };
  struct command command = {DO_RUN, 0, 0, 0, 0, 0, 0, 0, 0};
  const uint8_t *body = in_of(server);
  uint64_t limit;
  if (server->request.length < FIXED) {
    malformed(server, "a run needs an address and limits");
    return;
  }
  command.address = get64(body);
  command.count = get32(body + 8);
  command.wait = get32(body + 12);
  limit = get32(body + 16);
  command.repeats = get32(body + 20);
  command.before = get32(body + 24);
  command.after = get32(body + 28);
  if (command.repeats == 0 || command.repeats > MOST_REPEATS || command.before > MOST_MOVES ||
      command.after > MOST_MOVES || !read_places(server, FIXED, &command)) {
    malformed(server, "a run of too many places or repeats, or of places outside of the allocations or the frame");
    return;
  }
  if (command.count > 0 && !holds(&server->worker, command.address, (uint64_t)command.count * INSN_BYTES)) {
    malformed(server, "instructions where no memory is");
    return;
  }
  if (limit == 0 || limit > server->settings.limit_ms) limit = server->settings.limit_ms;
  ask(server, &command, limit);
}

static void begin_get(struct server *server) {
  struct command command = {DO_RUN, 0, 0, 0, 1, 0, 0, 0, 0};
  struct move *move = &server->worker.exchange->moves[MOST_MOVES];
  if (server->request.length != PLACE_HASHED || !read_place(server, in_of(server), move) || move->size > CONTENT_BYTES) {
    malformed(server, "not one place of at most 256 KiB within the allocations");
    return;
  }
  ask(server, &command, OPEN_MS);
}

/* What a client is told when the board is its: our proof, and facts, a line each. */
static void welcome(struct server *server) {
  const struct settings *settings = &server->settings;
  uint8_t text[6 + 2 * NONCE_BYTES] = "server", *out = out_of(server);
  int length;
  memcpy(text + 6, server->active->its_nonce, NONCE_BYTES);
  memcpy(text + 6 + NONCE_BYTES, server->active->our_nonce, NONCE_BYTES);
  hmac_sha256(settings->token, settings->token_bytes, text, sizeof text, out);
  length = snprintf((char *)out + SHA256_BYTES, BODY_BYTES - SHA256_BYTES,
                    "name=%s\nconfiguration=%s\naddress_bits=%u\ncontent_bytes=%u\nplaces=%u\nallocations=%u\n"
                    "repeats=%u\npool_bytes=%llu\nlimit_ms=%llu\nstarted=%s\n",
                    settings->name, server->worker.configuration, (unsigned)(8 * sizeof(vta_phy_addr_t)), CONTENT_BYTES,
                    MOST_MOVES, MOST_ALLOCATIONS, MOST_REPEATS, (unsigned long long)settings->pool_bytes,
                    (unsigned long long)settings->limit_ms, server->started);
  answer(server, SHA256_BYTES + (uint32_t)length);
}

void request_begin(struct server *server) {
  struct worker *worker = &server->worker;
  if (server->request.kind == LOG) {
    answer(server, worker_log(worker, out_of(server), LOG_BYTES));
    return;
  }
  if (server->request.kind == RESET && !server->opening) worker_end(worker, NULL, 0);
  if (!worker_running(worker)) {
    server->opening = server->asked = 1;
    if (!worker_begin(worker, OPEN_MS, server_descriptors(server)))
      request_died(server, E_NO_DRIVER, "no process can be begun");
    return;
  }
  switch (server->request.kind) {
    case PROVE: welcome(server); break;
    case ALLOCATE: begin_allocate(server); break;
    case PLACE: begin_place(server); break;
    case PUT: begin_put(server); break;
    case RUN: begin_run(server); break;
    case GET: begin_get(server); break;
    case RESET: answer(server, 0); break;
    default: malformed(server, "no such request");
  }
}

/* Answers --------------------------------------------------------------------------------------- */

static void opened(struct server *server, const struct reply *reply) {
  char *text = server->worker.exchange->text;
  text[sizeof server->worker.exchange->text - 1] = '\0';
  if (reply->status != 0) {
    char why[sizeof server->worker.exchange->text];
    memcpy(why, text, sizeof why);
    request_died(server, E_NO_DRIVER, why);
    return;
  }
  snprintf(server->worker.configuration, sizeof server->worker.configuration, "%.*s",
           (int)sizeof server->worker.configuration - 1, text);
  request_begin(server);
  server->opening = 0;
}

static void answer_allocate(struct server *server, const struct reply *reply) {
  struct worker *worker = &server->worker;
  if (reply->length > MOST_ALLOCATIONS) {
    request_died(server, E_CRASH, "the driver's process answers what it was not asked");
    return;
  }
  worker->allocations = reply->length;
  for (uint32_t i = 0; i < reply->length; i++) {
    worker->addresses[i] = worker->exchange->numbers[i];
    put64(out_of(server) + 8 * i, worker->addresses[i]);
  }
  answer(server, 8 * reply->length);
}

/* Which places of PLACE had no contents: their sources were looked up when it came. */
static void answer_place(struct server *server) {
  const uint8_t *body = in_of(server);
  uint32_t count = get32(body);
  for (uint32_t i = 0; i < count; i++) {
    const uint8_t *at = body + 8 + PLACE_HASHED * i;
    out_of(server)[i] = pool_get(&server->pool, at + PLACE_BYTES, get32(at + 4)) == NULL;
  }
  answer(server, count);
}

static void answer_get(struct server *server) {
  uint32_t size = get32(in_of(server) + 4);
  uint8_t hash[SHA256_BYTES], *out = out_of(server);
  sha256_of(out + RAN_BYTES, size, hash);
  if (memcmp(hash, in_of(server) + PLACE_BYTES, SHA256_BYTES) == 0) {
    put32(out, 1);
    answer(server, 4);
    return;
  }
  put32(out, 0);
  memmove(out + 4, out + RAN_BYTES, size);
  answer(server, 4 + size);
}

void request_answered(struct server *server, const struct reply *reply) {
  if (server->opening) {
    opened(server, reply);
    return;
  }
  if (reply->status != 0) {
    char why[sizeof server->worker.exchange->text];
    memcpy(why, server->worker.exchange->text, sizeof why);
    why[sizeof why - 1] = '\0';
    if (why[0] == '\0') snprintf(why, sizeof why, "VTADeviceRun returned %d", (int)reply->status);
    /* What the run has left, tokens for one, is not to be trusted. */
    request_died(server, reply->status == 1 ? E_TIMED_OUT : E_REFUSED, why);
    return;
  }
  if (reply->length > BODY_BYTES) {
    request_died(server, E_CRASH, "the driver's process answers what it was not asked");
    return;
  }
  switch (server->request.kind) {
    case ALLOCATE: answer_allocate(server, reply); break;
    case PLACE: answer_place(server); break;
    case PUT: answer(server, 0); break;
    case GET: answer_get(server); break;
    default: answer(server, reply->length);
  }
}

void request_died(struct server *server, enum frame_error code, const char *why) {
  char ended[400], line[900];
  worker_end(&server->worker, ended, sizeof ended);
  if (server->opening && code != E_NO_DRIVER) {
    snprintf(line, sizeof line, "the driver does not open: %s", why != NULL ? why : ended);
    code = E_NO_DRIVER;
  } else {
    snprintf(line, sizeof line, "%s", why != NULL ? why : ended);
  }
  server->opening = 0;
  worker_note(&server->worker, line);
  fail(server, code, line);
}
