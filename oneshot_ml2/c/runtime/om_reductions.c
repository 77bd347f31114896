/* Along axes: sums, extremes, normalizations, and where elements are. See om_ops.h. */
#include <math.h>

#include "om_ops.h"

/* Over any axes --------------------------------------------------------------------------------- */

/* The axes of an operand, parted in those that stay and those that are reduced: extents and steps. */
struct parts {
  int32_t rank[2], shape[2][OM_RANK], steps[2][OM_RANK];
};

static struct parts part(om_in x, uint32_t axes) {
  struct parts parts = {{0, 0}, {{0}, {0}}, {{0}, {0}}};
  int32_t steps[OM_RANK];
  om_steps(x, x, steps);
  for (int32_t axis = 0; axis < x->rank; axis++) {
    const int reduced = (int)(axes >> axis & 1);
    const int32_t to = parts.rank[reduced]++;
    parts.shape[reduced][to] = x->shape[axis];
    parts.steps[reduced][to] = steps[axis];
  }
  return parts;
}

static int32_t offset(const struct parts *parts, int which, const int32_t *at) {
  int32_t sum = 0;
  for (int32_t axis = 0; axis < parts->rank[which]; axis++) sum += at[axis] * parts->steps[which][axis];
  return sum;
}

/* What is made of the elements that are reduced to one; `count`: how many they are. */
typedef double fold_function(const float *from, const struct parts *parts, int32_t count);

#define FOLD(name, begin, step, end)                                                    \
  static double name##_of(const float *from, const struct parts *parts, int32_t count) { \
    int32_t at[OM_RANK] = {0};                                                          \
    double sum = (begin);                                                               \
    do {                                                                                \
      const double x = (double)from[offset(parts, 1, at)];                              \
      sum = (step);                                                                     \
    } while (om_next(parts->shape[1], parts->rank[1], at));                             \
    (void)count;                                                                        \
    return (end);                                                                       \
  }

FOLD(sum, 0.0, sum + x, sum)
FOLD(square, 0.0, sum + x * x, sum / (double)count)
FOLD(average, 0.0, sum + x, sum / (double)count)
FOLD(product, 1.0, sum *x, sum)
FOLD(largest, -HUGE_VAL, x > sum || x != x ? x : sum, sum)
FOLD(least, HUGE_VAL, x < sum || x != x ? x : sum, sum)

static double spread_of(const float *from, const struct parts *parts, int32_t count) {
  const double mean = average_of(from, parts, count);
  int32_t at[OM_RANK] = {0};
  double sum = 0.0;
  do {
    const double x = (double)from[offset(parts, 1, at)] - mean;
    sum += x * x;
  } while (om_next(parts->shape[1], parts->rank[1], at));
  return sum / (double)count;
}

static double deviation_of(const float *from, const struct parts *parts, int32_t count) {
  return sqrt(spread_of(from, parts, count));
}

static int32_t count_of(const struct parts *parts) {
  int32_t count = 1;
  for (int32_t axis = 0; axis < parts->rank[1]; axis++) count *= parts->shape[1][axis];
  return count;
}

static void fold(om_in out, om_in x, uint32_t axes, fold_function *function) {
  const struct parts parts = part(x, axes);
  const int32_t count = count_of(&parts);
  int32_t at[OM_RANK] = {0};
  float *to = out->data;
  do {
    *to++ = (float)function((const float *)x->data + offset(&parts, 0, at), &parts, count);
  } while (om_next(parts.shape[0], parts.rank[0], at));
}

void om_reduce_sum(om_in out, om_in x, uint32_t axes) { fold(out, x, axes, sum_of); }
void om_reduce_prod(om_in out, om_in x, uint32_t axes) { fold(out, x, axes, product_of); }
void om_reduce_max(om_in out, om_in x, uint32_t axes) { fold(out, x, axes, largest_of); }
void om_reduce_min(om_in out, om_in x, uint32_t axes) { fold(out, x, axes, least_of); }
void om_mean(om_in out, om_in x, uint32_t axes) { fold(out, x, axes, average_of); }
void om_variance(om_in out, om_in x, uint32_t axes) { fold(out, x, axes, spread_of); }
void om_std(om_in out, om_in x, uint32_t axes) { fold(out, x, axes, deviation_of); }

void om_normalize(om_in out, om_in x, uint32_t axes, float epsilon, int centred) {
  const struct parts parts = part(x, axes);
  const int32_t count = count_of(&parts);
  int32_t at[OM_RANK] = {0};
  do {
    const int32_t begin = offset(&parts, 0, at);
    const float *from = (const float *)x->data + begin;
    float *to = (float *)out->data + begin;
    const double mean = centred ? average_of(from, &parts, count) : 0.0;
    const double square = centred ? spread_of(from, &parts, count) : square_of(from, &parts, count);
    const double factor = 1.0 / sqrt(square + (double)epsilon);
    int32_t inner[OM_RANK] = {0};
    do {
      const int32_t place = offset(&parts, 1, inner);
      to[place] = (float)(((double)from[place] - mean) * factor);
    } while (om_next(parts.shape[1], parts.rank[1], inner));
  } while (om_next(parts.shape[0], parts.rank[0], at));
}

/* Along one axis -------------------------------------------------------------------------------- */

/* The lines along an axis: `outer` times `inner` of them, their elements `inner` apart. */
struct lines {
  int32_t outer, inner, size;
};

static struct lines lines_of(om_in x, int32_t axis) {
  struct lines lines;
  lines.outer = om_extent(x, 0, axis);
  lines.inner = om_extent(x, axis + 1, x->rank);
  lines.size = x->shape[axis];
  return lines;
}

/* Where line `number` of tensors with `size` elements along the axis begins. */
static ptrdiff_t begin_of(const struct lines *lines, int32_t number, int32_t size) {
  return (ptrdiff_t)(number / lines->inner) * lines->inner * size + number % lines->inner;
}

static void softmax(om_in out, om_in x, int32_t axis, int logarithm) {
  const struct lines lines = lines_of(x, axis);
  for (int32_t number = 0; number < lines.outer * lines.inner; number++) {
    const float *from = (const float *)x->data + begin_of(&lines, number, lines.size);
    float *to = (float *)out->data + begin_of(&lines, number, lines.size);
    double sum = 0.0, logsum;
    float most = from[0];
    for (int32_t i = 1; i < lines.size; i++) {
      if (from[(ptrdiff_t)i * lines.inner] > most) most = from[(ptrdiff_t)i * lines.inner];
    }
    for (int32_t i = 0; i < lines.size; i++) sum += exp((double)(from[(ptrdiff_t)i * lines.inner] - most));
    logsum = log(sum);
    for (int32_t i = 0; i < lines.size; i++) {
      const double apart = (double)(from[(ptrdiff_t)i * lines.inner] - most);
      to[(ptrdiff_t)i * lines.inner] = (float)(logarithm ? apart - logsum : exp(apart) / sum);
    }
  }
}

void om_softmax(om_in out, om_in x, int32_t axis) { softmax(out, x, axis, 0); }
void om_log_softmax(om_in out, om_in x, int32_t axis) { softmax(out, x, axis, 1); }

/* Where the first element is that no other is before in order; NaN is before all. */
static void extreme(om_in out, om_in x, int32_t axis, int largest) {
  const struct lines lines = lines_of(x, axis);
  for (int32_t number = 0; number < lines.outer * lines.inner; number++) {
    const float *from = (const float *)x->data + begin_of(&lines, number, lines.size);
    int32_t best = 0;
    for (int32_t i = 1; i < lines.size; i++) {
      const float found = from[(ptrdiff_t)best * lines.inner], other = from[(ptrdiff_t)i * lines.inner];
      if (found != found) break;
      if (other != other || (largest ? other > found : other < found)) best = i;
    }
    ((float *)out->data)[number] = (float)best;
  }
}

void om_argmax(om_in out, om_in x, int32_t axis) { extreme(out, x, axis, 1); }
void om_argmin(om_in out, om_in x, int32_t axis) { extreme(out, x, axis, 0); }

void om_cumsum(om_in out, om_in x, int32_t axis, int exclusive) {
  const struct lines lines = lines_of(x, axis);
  for (int32_t number = 0; number < lines.outer * lines.inner; number++) {
    const float *from = (const float *)x->data + begin_of(&lines, number, lines.size);
    float *to = (float *)out->data + begin_of(&lines, number, lines.size);
    float sum = 0.0f;
    for (int32_t i = 0; i < lines.size; i++) {
      const float next = from[(ptrdiff_t)i * lines.inner];
      sum += next;
      to[(ptrdiff_t)i * lines.inner] = exclusive ? sum - next : sum;
    }
  }
}

/* Whether element i is in front of element j; NaN is behind all others. */
static int in_front(const float *from, int32_t inner, int32_t i, int32_t j, int largest) {
  const float a = from[(ptrdiff_t)i * inner], b = from[(ptrdiff_t)j * inner];
  if (a != a || b != b) return a != a ? b != b && i < j : 1;
  if (a == b) return i < j;
  return largest ? a > b : a < b;
}

static void first_ones(om_in out, om_in x, int32_t axis, int largest, int values) {
  const struct lines lines = lines_of(x, axis);
  const int32_t wanted = out->shape[axis];
  for (int32_t number = 0; number < lines.outer * lines.inner; number++) {
    const float *from = (const float *)x->data + begin_of(&lines, number, lines.size);
    float *to = (float *)out->data + begin_of(&lines, number, wanted);
    int32_t last = -1;
    for (int32_t k = 0; k < wanted; k++) {
      int32_t best = -1;
      for (int32_t i = 0; i < lines.size; i++) {
        if (last >= 0 && !in_front(from, lines.inner, last, i, largest)) continue;
        if (i != last && (best < 0 || in_front(from, lines.inner, i, best, largest))) best = i;
      }
      to[(ptrdiff_t)k * lines.inner] = values ? from[(ptrdiff_t)best * lines.inner] : (float)best;
      last = best;
    }
  }
}

void om_topk_values(om_in out, om_in x, int32_t axis, int largest) { first_ones(out, x, axis, largest, 1); }
void om_topk_indices(om_in out, om_in x, int32_t axis, int largest) { first_ones(out, x, axis, largest, 0); }

void om_resample(om_in out, om_in x, om_in sources, om_in weights, int32_t axis) {
  const struct lines lines = lines_of(x, axis);
  const int32_t taps = sources->shape[0], after = sources->shape[1];
  const int32_t *source = sources->data;
  const float *weight = weights->data;
  for (int32_t number = 0; number < lines.outer * lines.inner; number++) {
    const float *from = (const float *)x->data + begin_of(&lines, number, lines.size);
    float *to = (float *)out->data + begin_of(&lines, number, after);
    for (int32_t i = 0; i < after; i++) {
      float sum = 0.0f;
      for (int32_t tap = 0; tap < taps; tap++) {
        const int32_t place = tap * after + i;
        sum += from[(ptrdiff_t)source[place] * lines.inner] * weight[place];
      }
      to[(ptrdiff_t)i * lines.inner] = sum;
    }
  }
}
