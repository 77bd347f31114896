/* Connections and their order. See server.h. One process, one loop; what may hang is in the worker. */
#define _GNU_SOURCE

#include "server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tracker.h"

/* ms: for a client to prove itself; for the rest of a frame; for one that is left to go; the longest sleep. */
#define PROVE_MS 10000u
#define REST_MS 30000u
#define LEAVE_MS 2000u
#define SLEEP_MS 1000u

static int fill_random(uint8_t *out, size_t size) {
  int file = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
  ssize_t done = file < 0 ? -1 : read(file, out, size);
  if (file >= 0) close(file);
  return done == (ssize_t)size;
}

/* Listening ------------------------------------------------------------------------------------- */

int server_open(struct server *server) {
  const struct settings *settings = &server->settings;
  struct sockaddr_storage place;
  socklen_t size = address_of(settings->address, settings->port, &place);
  int one = 1;
  uint8_t random[8];
  server->listener = -1;
  server->tracker_pipe = -1;
  if (!worker_init(&server->worker, settings->driver) || !pool_open(&server->pool, settings->pool_bytes)) {
    fprintf(stderr, "vta-server: no memory for a pool of %llu bytes: give a smaller --pool\n",
            (unsigned long long)settings->pool_bytes);
    return 0;
  }
  server->worker.kept = server->pool.bytes;
  server->worker.kept_size = (size_t)server->pool.size;
  if (!fill_random(random, sizeof random)) {
    fprintf(stderr, "vta-server: /dev/urandom cannot be read\n");
    return 0;
  }
  for (int i = 0; i < 8; i++) snprintf(server->started + 2 * i, 3, "%02x", random[i]);
  server->listener = socket(place.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (server->listener >= 0) setsockopt(server->listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (server->listener < 0 || bind(server->listener, (struct sockaddr *)&place, size) != 0 ||
      listen(server->listener, MOST_CLIENTS) != 0 ||
      getsockname(server->listener, (struct sockaddr *)&place, &size) != 0) {
    fprintf(stderr, "vta-server: cannot listen on %s port %u: %s\n", settings->address, settings->port, strerror(errno));
    return 0;
  }
  server->settings.port = port_of(&place);
  if (settings->tracker != NULL) {
    server->tracker_pipe = tracker_begin(settings->tracker, settings->key, settings->tell, server->settings.port,
                                         server->listener);
    if (server->tracker_pipe < 0) return 0;
  }
  printf("listening on %s port %u\n", settings->address, server->settings.port);
  fflush(stdout);
  return 1;
}

const int *server_descriptors(const struct server *server) {
  static int found[MOST_CLIENTS + 3];
  int count = 0;
  found[count++] = server->listener;
  if (server->tracker_pipe >= 0) found[count++] = server->tracker_pipe;
  for (int i = 0; i < MOST_CLIENTS; i++) {
    if (server->clients[i].state != C_NONE) found[count++] = server->clients[i].fd;
  }
  found[count] = -1;
  return found;
}

static void accept_client(struct server *server) {
  int one = 1, quiet = 20, fd = accept4(server->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
  struct client *client = NULL;
  if (fd < 0) return;
  for (int i = 0; i < MOST_CLIENTS && client == NULL; i++) {
    /* The one that has the board keeps its place until its last run has ended. */
    if (server->clients[i].state == C_NONE && &server->clients[i] != server->active) client = &server->clients[i];
  }
  if (client == NULL) {
    close(fd);
    return;
  }
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  /* A client whose machine is gone is noticed within a minute. */
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &quiet, sizeof quiet);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &quiet, sizeof quiet);
  memset(client, 0, sizeof *client);
  client->fd = fd;
  client->state = C_HELLO;
  client->heard = now_ms();
}

/* Who has the board ------------------------------------------------------------------------------ */

static struct client *next_waiting(struct server *server) {
  struct client *next = NULL;
  for (int i = 0; i < MOST_CLIENTS; i++) {
    struct client *one = &server->clients[i];
    if (one->state == C_WAITING && !one->sending && (next == NULL || one->ticket < next->ticket)) next = one;
  }
  return next;
}

static uint32_t waiting(const struct server *server) {
  uint32_t count = 0;
  for (int i = 0; i < MOST_CLIENTS; i++) count += server->clients[i].state == C_WAITING;
  return count;
}

/* Give the board back when who has it is gone and nothing runs, and give it to the next. */
static void pass_on(struct server *server) {
  struct client *next;
  if (server->active != NULL && server->active_gone && !server->asked) {
    worker_end(&server->worker, NULL, 0);
    server->active = NULL;
    server->active_gone = server->opening = 0;
    tracker_tell(server->tracker_pipe, TRACKER_FREE);
  }
  if (server->active != NULL || (next = next_waiting(server)) == NULL) return;
  tracker_tell(server->tracker_pipe, TRACKER_BUSY);
  server->active = next;
  next->state = C_ACTIVE;
  next->heard = now_ms();
  server->request = next->frame;
  request_begin(server);
}

/* Frames ----------------------------------------------------------------------------------------- */

static void say_hello(struct server *server, struct client *client) {
  if (client->frame.kind != HELLO || client->frame.length != NONCE_BYTES ||
      !fill_random(client->our_nonce, NONCE_BYTES)) {
    client->last = 1;
    client_fail(server, client, client->frame.id, E_NOT_ALLOWED, "begin with a hello");
    return;
  }
  memcpy(client->its_nonce, client->small, NONCE_BYTES);
  memcpy(client->out_small, client->our_nonce, NONCE_BYTES);
  put32(client->out_small + NONCE_BYTES, server->settings.token_bytes > 0);
  client->state = C_PROVE;
  client_send(server, client, HELLO | ANSWER, client->frame.id, NONCE_BYTES + 4);
}

static void check_proof(struct server *server, struct client *client) {
  uint8_t text[6 + 2 * NONCE_BYTES] = "client", proof[SHA256_BYTES];
  const struct settings *settings = &server->settings;
  memcpy(text + 6, client->our_nonce, NONCE_BYTES);
  memcpy(text + 6 + NONCE_BYTES, client->its_nonce, NONCE_BYTES);
  hmac_sha256(settings->token, settings->token_bytes, text, sizeof text, proof);
  if (client->frame.kind != PROVE || client->frame.length != SHA256_BYTES ||
      (settings->token_bytes > 0 && !sha256_equal(proof, client->small))) {
    client->last = 1;
    client_fail(server, client, client->frame.id, E_NOT_ALLOWED, "the token is another one than the server's");
    return;
  }
  client->state = C_WAITING;
  client->ticket = server->tickets++;
  if (server->active == NULL) return;
  put32(client->out_small, waiting(server));
  client_send(server, client, QUEUED, client->frame.id, 4);
}

static void listen_to(struct server *server, struct client *client) {
  if (client->state == C_LEAVING) {
    uint8_t unread[4096];
    ssize_t size = recv(client->fd, unread, sizeof unread, MSG_DONTWAIT);
    if (size == 0 || (size < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) client_drop(server, client);
    return;
  }
  if (!client_receive(server, client)) return;
  if (client->state == C_HELLO) {
    say_hello(server, client);
  } else if (client->state == C_PROVE) {
    check_proof(server, client);
  } else {
    server->request = client->frame;
    /* Once it has the board there is nothing to prove. */
    if (server->request.kind == PROVE) server->request.kind = KINDS;
    request_begin(server);
  }
}

/* The loop --------------------------------------------------------------------------------------- */

static short wanted(const struct server *server, const struct client *client) {
  if (client->sending) return POLLOUT;
  if (client->state == C_WAITING || (client == server->active && server->asked)) return POLLRDHUP;
  return POLLIN;
}

static void drop_late(struct server *server, struct client *client, uint64_t now) {
  uint64_t quiet = now - client->heard;
  int begun = client->head_got > 0 || client->sending;
  if (client->state == C_NONE || client->state == C_WAITING || (client == server->active && server->asked)) return;
  if (client->state == C_HELLO || client->state == C_PROVE) {
    if (quiet > PROVE_MS) client_drop(server, client);
  } else if (client->state == C_LEAVING) {
    if (quiet > LEAVE_MS) client_drop(server, client);
  } else if ((begun && quiet > REST_MS) || (quiet > server->settings.idle_ms && waiting(server) > 0)) {
    worker_note(&server->worker, "a client was quiet for too long, and is left");
    client_drop(server, client);
  }
}

static void look_at_worker(struct server *server) {
  struct reply reply;
  char why[120];
  if (!server->asked) return;
  switch (worker_look(&server->worker, &reply)) {
    case WORKER_ANSWERED: request_answered(server, &reply); return;
    case WORKER_DIED: request_died(server, E_CRASH, NULL); return;
    default: break;
  }
  if (now_ms() < server->worker.deadline) return;
  snprintf(why, sizeof why, "no answer within the limit; the driver's process was ended, and is begun anew");
  request_died(server, E_HANG, why);
}

static int sleep_for(const struct server *server) {
  uint64_t now = now_ms(), deadline = server->worker.deadline;
  if (!server->asked || deadline > now + SLEEP_MS) return SLEEP_MS;
  return deadline <= now ? 0 : (int)(deadline - now);
}

void server_run(struct server *server, const volatile int *stop) {
  while (!*stop) {
    struct pollfd polled[MOST_CLIENTS + 3];
    struct client *whose[MOST_CLIENTS + 3];
    int count = 3;
    polled[0] = (struct pollfd){server->listener, POLLIN, 0};
    polled[1] = (struct pollfd){server->asked ? server->worker.channel : -1, POLLIN, 0};
    polled[2] = (struct pollfd){server->worker.output, POLLIN, 0};
    for (int i = 0; i < MOST_CLIENTS; i++) {
      struct client *client = &server->clients[i];
      if (client->state == C_NONE) continue;
      polled[count] = (struct pollfd){client->fd, wanted(server, client), 0};
      whose[count++] = client;
    }
    if (poll(polled, (nfds_t)count, sleep_for(server)) < 0 && errno != EINTR) break;
    worker_listen(&server->worker);
    look_at_worker(server);
    for (int i = 3; i < count; i++) {
      struct client *client = whose[i];
      if (client->state == C_NONE || client->fd != polled[i].fd) continue;
      if (polled[i].events == POLLRDHUP) {
        if (polled[i].revents != 0) client_drop(server, client);
      } else if (polled[i].revents & POLLOUT) {
        client_flush(server, client);
      } else if (polled[i].revents != 0) {
        listen_to(server, client);
      }
      drop_late(server, client, now_ms());
    }
    if (polled[0].revents & POLLIN) accept_client(server);
    pass_on(server);
  }
}

void server_close(struct server *server) {
  for (int i = 0; i < MOST_CLIENTS; i++) client_drop(server, &server->clients[i]);
  worker_end(&server->worker, NULL, 0);
  if (server->listener >= 0) close(server->listener);
  if (server->tracker_pipe >= 0) close(server->tracker_pipe);
  pool_close(&server->pool);
}
