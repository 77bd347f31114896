/* Frames of one client. See server.h. */
#define _GNU_SOURCE

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server.h"

/* How clients of TVM's own RPC begin, and the answer that tells them that nobody is here for them. */
#define TVM_RPC_MAGIC 0xff271u
#define TVM_RPC_MISMATCH (TVM_RPC_MAGIC + 2u)

uint8_t *client_body(struct server *server, struct client *client) {
  return client == server->active ? server->worker.exchange->in : client->small;
}

static uint32_t most_body(const struct server *server, const struct client *client) {
  return client == server->active ? BODY_BYTES : SMALL_BYTES;
}

void client_send(struct server *server, struct client *client, uint8_t kind, uint32_t id, uint32_t length) {
  client->out_body = client == server->active ? server->worker.exchange->out : client->out_small;
  client->out_length = length;
  client->sent = 0;
  client->sending = 1;
  frame_write(client->out_head, kind, id, client->out_body, length);
  client_flush(server, client);
}

void client_fail(struct server *server, struct client *client, uint32_t id, enum frame_error code, const char *why) {
  uint8_t *body = client == server->active ? server->worker.exchange->out : client->out_small;
  size_t length = strlen(why);
  if (length > SMALL_BYTES - 4 && client != server->active) length = SMALL_BYTES - 4;
  put32(body, (uint32_t)code);
  memcpy(body + 4, why, length);
  client_send(server, client, FAILED, id, (uint32_t)length + 4);
}

/* Say nothing more. What it still sends is thrown away, so that it gets to read why it is left. */
static void leave(struct client *client) {
  shutdown(client->fd, SHUT_WR);
  client->state = C_LEAVING;
}

void client_flush(struct server *server, struct client *client) {
  while (client->sending) {
    int in_head = client->sent < FRAME_HEAD;
    const uint8_t *from = in_head ? client->out_head + client->sent : client->out_body + (client->sent - FRAME_HEAD);
    size_t size = in_head ? FRAME_HEAD - client->sent : client->out_length - (client->sent - FRAME_HEAD);
    /* A header waits for its body, if it has one. */
    int flags = MSG_NOSIGNAL | MSG_DONTWAIT | (in_head && client->out_length > 0 ? MSG_MORE : 0);
    ssize_t done = size == 0 ? 0 : send(client->fd, from, size, flags);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (done < 0) {
      client_drop(server, client);
      return;
    }
    client->sent += (uint32_t)done;
    client->sending = client->sent < FRAME_HEAD + client->out_length;
  }
  if (client->last) leave(client);
}

/* Say why, and end the connection: where the next frame begins is not known. */
static int refuse(struct server *server, struct client *client, enum frame_error code, const char *why) {
  client->last = 1;
  client_fail(server, client, client->frame.id, code, why);
  return 0;
}

static int begin_body(struct server *server, struct client *client) {
  enum frame_state state = frame_read(client->head, &client->frame);
  if (state == FRAME_BAD) {
    client->frame.id = 0;
    if (get32(client->head) == TVM_RPC_MAGIC) {
      put32(client->out_small, TVM_RPC_MISMATCH);
      (void)!send(client->fd, client->out_small, 4, MSG_NOSIGNAL | MSG_DONTWAIT);
      leave(client);
      return 0;
    }
    return refuse(server, client, E_DAMAGED, "the frame's header is damaged");
  }
  if (state == FRAME_OTHER_VERSION) return refuse(server, client, E_MALFORMED, "this server speaks version 1");
  if (client->frame.length > most_body(server, client))
    return refuse(server, client, E_MALFORMED, "the frame is longer than is allowed now");
  return 1;
}

/* Bytes of a frame's part: 1 when it is whole. */
static int receive_part(struct server *server, struct client *client, uint8_t *to, uint32_t size, uint32_t *got) {
  while (*got < size) {
    ssize_t done = recv(client->fd, to + *got, size - *got, MSG_DONTWAIT);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return 0;
    if (done <= 0) {
      client_drop(server, client);
      return 0;
    }
    *got += (uint32_t)done;
    client->heard = now_ms();
  }
  return 1;
}

int client_receive(struct server *server, struct client *client) {
  uint8_t *body = client_body(server, client);
  if (client->head_got < FRAME_HEAD) {
    if (!receive_part(server, client, client->head, FRAME_HEAD, &client->head_got)) return 0;
    client->body_got = 0;
    if (!begin_body(server, client)) return 0;
  }
  if (!receive_part(server, client, body, client->frame.length, &client->body_got)) return 0;
  client->head_got = 0;
  if (crc32_of(body, client->frame.length) == client->frame.crc) return 1;
  client_fail(server, client, client->frame.id, E_DAMAGED, "the frame's body is damaged; send it again");
  return 0;
}

void client_drop(struct server *server, struct client *client) {
  if (client->state == C_NONE) return;
  close(client->fd);
  client->fd = -1;
  client->state = C_NONE;
  client->sending = 0;
  if (client == server->active) server->active_gone = 1;
}
