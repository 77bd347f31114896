/* The server: connections, of which one has the board and the others wait in order. docs/server.md has the protocol. */
#ifndef SERVER_H
#define SERVER_H

#include "frame.h"
#include "pool.h"
#include "sha256.h"
#include "worker.h"

#define MOST_CLIENTS 32
#define NONCE_BYTES 32u
#define SMALL_BYTES 256u

struct settings {
  const char *driver, *name;
  const char *address;
  uint32_t port;
  uint8_t token[256];
  size_t token_bytes;
  uint64_t pool_bytes, limit_ms, idle_ms;
  const char *tracker, *key, *tell;
};

enum client_state { C_NONE, C_HELLO, C_PROVE, C_WAITING, C_ACTIVE, C_LEAVING };

struct client {
  enum client_state state;
  int fd;
  /* Its place in the queue; when it was last heard. */
  uint64_t ticket, heard;
  /* The frame that is coming in. */
  struct frame frame;
  uint8_t head[FRAME_HEAD];
  uint32_t head_got, body_got;
  uint8_t small[SMALL_BYTES];
  /* The frame that goes out; `last`: the connection ends behind it. */
  uint8_t out_head[FRAME_HEAD], out_small[SMALL_BYTES];
  const uint8_t *out_body;
  uint32_t out_length, sent;
  int sending, last;
  uint8_t its_nonce[NONCE_BYTES], our_nonce[NONCE_BYTES];
};

struct server {
  struct settings settings;
  struct client clients[MOST_CLIENTS];
  /* Who has the board; NULL: nobody. It may be gone while its last run goes on. */
  struct client *active;
  int active_gone;
  uint64_t tickets;
  int listener, tracker_pipe;
  struct worker worker;
  struct pool pool;
  /* What the worker is asked for: the request, and whether the driver is being opened for it. */
  struct frame request;
  int asked, opening;
  char started[17];
};

/* 0: it cannot be; a line says why. */
int server_open(struct server *server);
/* Serve until `stop` is set. */
void server_run(struct server *server, const volatile int *stop);
void server_close(struct server *server);

/* connection.c: frames of one client. ------------------------------------------------------------ */

/* Answer with the bytes in a client's `out_small`, or, of the active one, in the exchange's `out`. */
void client_send(struct server *server, struct client *client, uint8_t kind, uint32_t id, uint32_t length);
void client_fail(struct server *server, struct client *client, uint32_t id, enum frame_error code, const char *why);
/* Take what has come: 1 if a frame is whole, and undamaged, in `client->frame`; its body is `client_body`. */
int client_receive(struct server *server, struct client *client);
uint8_t *client_body(struct server *server, struct client *client);
/* Send what can be sent. */
void client_flush(struct server *server, struct client *client);
void client_drop(struct server *server, struct client *client);

/* requests.c: what the active client asks for. --------------------------------------------------- */

/* Begin what `server->request` asks for: the worker is asked, or the answer is sent. */
void request_begin(struct server *server);
/* The worker's answer to it, or what became of the worker. */
void request_answered(struct server *server, const struct reply *reply);
void request_died(struct server *server, enum frame_error code, const char *why);

/* server.c: descriptors that a worker must not keep, ended by -1. */
const int *server_descriptors(const struct server *server);

#endif
