/* Tensors of the host: dense, the last axis fastest. */
#ifndef OM_TENSOR_H
#define OM_TENSOR_H

#include <stddef.h>
#include <stdint.h>

#define OM_RANK 8

/* `bytes`: of an element, 1 (int8) or 4 (float, int32). */
struct om_tensor {
  void *data;
  int32_t bytes, rank;
  int32_t shape[OM_RANK];
};

typedef const struct om_tensor *om_in;

/* Elements of axes `first` to `last` - 1; 1 if there are none. */
int32_t om_extent(om_in x, int32_t first, int32_t last);
int32_t om_elements(om_in x);

/* How far from one another elements along each axis of a result are in an operand that is broadcast to it. */
void om_steps(om_in x, om_in out, int32_t steps[OM_RANK]);

/* Go on to the next place, the last axis first, in `rank` axes; 0 after the last one. */
int om_next(const int32_t *shape, int32_t rank, int32_t at[OM_RANK]);

#endif
