/* A TVM RPC tracker that hands this server out; and addresses, which are numbers: names need a resolver. */
#ifndef TRACKER_H
#define TRACKER_H

#include <stdint.h>
#include <sys/socket.h>

/* What the process that talks to the tracker is told. */
#define TRACKER_FREE 'f'
#define TRACKER_BUSY 'b'

/* The socket address of numbers, IPv4 or IPv6; 0 if they are none. */
socklen_t address_of(const char *address, uint32_t port, struct sockaddr_storage *out);
uint32_t port_of(const struct sockaddr_storage *place);
int is_loopback(const struct sockaddr_storage *place);
/* ADDRESS:PORT or [ADDRESS]:PORT taken apart, `text` being changed; 0 if it is of no such form. */
int take_apart(char *text, const char **address, uint32_t *port);

/* Begin a process that keeps this server registered with a tracker (ADDRESS:PORT) under a key; `tell`: the address that
 * clients are given, NULL: the one that the tracker sees. The end of a pipe to it; -1: there is none. */
int tracker_begin(const char *tracker, const char *key, const char *tell, uint32_t port, int listener);
/* Tell it whether the board is free; no pipe: nothing. */
void tracker_tell(int pipe, char what);

#endif
