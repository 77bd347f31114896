/* See om_tensor.h. */
#include "om_tensor.h"

int32_t om_extent(om_in x, int32_t first, int32_t last) {
  int32_t product = 1;
  for (int32_t axis = first; axis < last; axis++) product *= x->shape[axis];
  return product;
}

int32_t om_elements(om_in x) { return om_extent(x, 0, x->rank); }

void om_steps(om_in x, om_in out, int32_t steps[OM_RANK]) {
  int32_t step = 1;
  for (int32_t axis = 0; axis < OM_RANK; axis++) steps[axis] = 0;
  for (int32_t axis = x->rank - 1; axis >= 0; axis--) {
    if (x->shape[axis] > 1) steps[axis + out->rank - x->rank] = step;
    step *= x->shape[axis];
  }
}

int om_next(const int32_t *shape, int32_t rank, int32_t at[OM_RANK]) {
  for (int32_t axis = rank - 1; axis >= 0; axis--) {
    if (++at[axis] < shape[axis]) return 1;
    at[axis] = 0;
  }
  return 0;
}
