/* What moves elements only, of any type. See om_ops.h. */
#include <string.h>

#include "om_ops.h"

/* A copy of `count` elements of 1 or 4 bytes, `step` apart. */
static void copy_row(uint8_t *to, const uint8_t *from, int32_t count, int32_t step, int32_t bytes) {
  if (step == 1) {
    memcpy(to, from, (size_t)count * (size_t)bytes);
  } else if (bytes == 1) {
    for (int32_t i = 0; i < count; i++) to[i] = from[(ptrdiff_t)i * step];
  } else {
    for (int32_t i = 0; i < count; i++) memcpy(to + (ptrdiff_t)i * 4, from + (ptrdiff_t)i * step * 4, 4);
  }
}

void om_strided(om_in out, om_in x, int32_t offset, const int32_t *steps) {
  int32_t at[OM_RANK] = {0};
  const int32_t outer = out->rank > 0 ? out->rank - 1 : 0, count = out->rank > 0 ? out->shape[outer] : 1;
  const int32_t bytes = out->bytes;
  uint8_t *to = out->data;
  do {
    ptrdiff_t from = offset;
    for (int32_t axis = 0; axis < outer; axis++) from += (ptrdiff_t)at[axis] * steps[axis];
    copy_row(to, (const uint8_t *)x->data + from * bytes, count, out->rank > 0 ? steps[outer] : 1, bytes);
    to += (ptrdiff_t)count * bytes;
  } while (om_next(out->shape, outer, at));
}

void om_concat(om_in out, om_in x, int32_t axis, int32_t begin) {
  const size_t inner = (size_t)om_extent(out, axis + 1, out->rank) * (size_t)out->bytes;
  const size_t line = inner * (size_t)x->shape[axis], whole = inner * (size_t)out->shape[axis];
  const int32_t outer = om_extent(out, 0, axis);
  const uint8_t *from = x->data;
  uint8_t *to = (uint8_t *)out->data + inner * (size_t)begin;
  for (int32_t i = 0; i < outer; i++) memcpy(to + (size_t)i * whole, from + (size_t)i * line, line);
}

void om_pad(om_in out, om_in x, const int32_t *before, float fill) {
  int32_t at[OM_RANK] = {0}, steps[OM_RANK];
  const int32_t elements = om_elements(out), outer = x->rank > 0 ? x->rank - 1 : 0;
  const size_t bytes = (size_t)out->bytes, line = (x->rank > 0 ? (size_t)x->shape[outer] : 1) * bytes;
  const uint8_t *from = x->data;
  om_steps(out, out, steps);
  if (out->bytes == 1) {
    memset(out->data, (int)fill, (size_t)elements);
  } else {
    for (int32_t i = 0; i < elements; i++) ((float *)out->data)[i] = fill;
  }
  do {
    size_t to = 0;
    for (int32_t axis = 0; axis < out->rank; axis++) {
      to += (size_t)(before[axis] + (axis < outer ? at[axis] : 0)) * (size_t)steps[axis];
    }
    memcpy((uint8_t *)out->data + to * bytes, from, line);
    from += line;
  } while (om_next(x->shape, outer, at));
}

/* The whole number that a float holds, from -size to size - 1; NaN and what is below is -size. */
static int32_t whole(float number, int32_t size) {
  if (!(number >= 0.0f)) return number >= (float)-size ? (int32_t)number : -size;
  return number < (float)size ? (int32_t)number : size - 1;
}

/* Lines of an axis by their places, int32 or whole numbers as float; beyond the axis its first or last line. */
static void lines(om_in out, om_in x, om_in index, int32_t axis, int real) {
  const size_t inner = (size_t)om_extent(x, axis + 1, x->rank) * (size_t)x->bytes;
  const int32_t outer = om_extent(x, 0, axis), size = x->shape[axis], count = om_elements(index);
  uint8_t *to = out->data;
  for (int32_t i = 0; i < outer; i++) {
    const uint8_t *table = (const uint8_t *)x->data + (size_t)i * (size_t)size * inner;
    for (int32_t j = 0; j < count; j++) {
      int32_t place = real ? whole(((const float *)index->data)[j], size) : ((const int32_t *)index->data)[j];
      place = place < 0 ? 0 : place >= size ? size - 1 : place;
      memcpy(to, table + (size_t)place * inner, inner);
      to += inner;
    }
  }
}

void om_gather(om_in out, om_in x, om_in places, int32_t axis) { lines(out, x, places, axis, 0); }

void om_take(om_in out, om_in x, om_in index, int32_t axis) { lines(out, x, index, axis, 1); }

void om_take_along(om_in out, om_in x, om_in index, int32_t axis) {
  int32_t at[OM_RANK] = {0}, steps[OM_RANK];
  const float *place_of = index->data;
  uint8_t *to = out->data;
  om_steps(x, x, steps);
  do {
    ptrdiff_t from = 0;
    int32_t place = whole(*place_of++, x->shape[axis]);
    /* Those below 0 count from the end. */
    if (place < 0) place += x->shape[axis];
    for (int32_t i = 0; i < x->rank; i++) from += (ptrdiff_t)(i == axis ? place : at[i]) * steps[i];
    memcpy(to, (const uint8_t *)x->data + from * x->bytes, (size_t)x->bytes);
    to += x->bytes;
  } while (om_next(out->shape, out->rank, at));
}
