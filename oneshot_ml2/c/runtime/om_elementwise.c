/* Functions of single elements, and of two or three that are broadcast. See om_ops.h. */
#include <math.h>

#include "om_ops.h"

/* One operand ---------------------------------------------------------------------------------- */

#define UNARY(name, expression)                                \
  void om_##name(om_in out, om_in operand) {                   \
    const float *from = operand->data;                         \
    float *to = out->data;                                     \
    const int32_t count = om_elements(out);                    \
    for (int32_t i = 0; i < count; i++) {                      \
      const float x = from[i];                                 \
      to[i] = (expression);                                    \
    }                                                          \
  }

static float larger(float a, float b) { return a >= b || a != a ? a : b; }
static float smaller(float a, float b) { return a <= b || a != a ? a : b; }

/* What a function of doubles gives, rounded to float. */
#define ROUNDED(function, x) ((float)function((double)(x)))

static float logistic(float x) { return 1.0f / (1.0f + ROUNDED(exp, -x)); }

static float gelu_by_tanh(float x) {
  const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return 0.5f * x * (1.0f + ROUNDED(tanh, inner));
}

/* log(exp(x) + 1), which neither overflows nor loses what is small. */
static float log_of_sum(float x) {
  if (x == 0.0f) return 0.6931471805599453f;
  return x > 0.0f ? x + ROUNDED(log1p, ROUNDED(exp, -x)) : ROUNDED(log1p, ROUNDED(exp, x));
}

UNARY(relu, larger(x, 0.0f))
UNARY(abs, fabsf(x))
UNARY(sign, x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x != x ? x : 0.0f)
UNARY(floor, floorf(x))
UNARY(ceil, ceilf(x))
UNARY(round, rintf(x))
UNARY(trunc, truncf(x))
UNARY(sqrt, sqrtf(x))
UNARY(rsqrt, 1.0f / sqrtf(x))
UNARY(square, x *x)
UNARY(exp, ROUNDED(exp, x))
UNARY(log, ROUNDED(log, x))
UNARY(sin, ROUNDED(sin, x))
UNARY(cos, ROUNDED(cos, x))
UNARY(tan, ROUNDED(tan, x))
UNARY(atan, ROUNDED(atan, x))
UNARY(tanh, ROUNDED(tanh, x))
UNARY(sigmoid, logistic(x))
UNARY(gelu, 0.5f * x * (1.0f + ROUNDED(erf, x / 1.4142135623730951f)))
UNARY(gelu_tanh, gelu_by_tanh(x))
UNARY(silu, x *logistic(x))
UNARY(softplus, log_of_sum(x))
UNARY(erf, ROUNDED(erf, x))
UNARY(logical_not, x == 0.0f ? 1.0f : 0.0f)
UNARY(isnan, x != x ? 1.0f : 0.0f)
UNARY(isinf, isinf(x) ? 1.0f : 0.0f)

void om_clip(om_in out, om_in operand, float low, float high) {
  const float *from = operand->data;
  float *to = out->data;
  const int32_t count = om_elements(out);
  for (int32_t i = 0; i < count; i++) to[i] = smaller(larger(from[i], low), high);
}

/* Two operands --------------------------------------------------------------------------------- */

/* A row of the result, from operands whose elements are `sa` and `sb` apart. */
typedef void row_function(float *to, int32_t count, const float *a, int32_t sa, const float *b, int32_t sb);

static void by_rows(om_in out, om_in a, om_in b, row_function *row) {
  int32_t at[OM_RANK] = {0}, steps_a[OM_RANK], steps_b[OM_RANK];
  const int32_t outer = out->rank > 0 ? out->rank - 1 : 0, count = out->rank > 0 ? out->shape[outer] : 1;
  float *to = out->data;
  om_steps(a, out, steps_a);
  om_steps(b, out, steps_b);
  do {
    int32_t from_a = 0, from_b = 0;
    for (int32_t axis = 0; axis < outer; axis++) {
      from_a += at[axis] * steps_a[axis];
      from_b += at[axis] * steps_b[axis];
    }
    row(to, count, (const float *)a->data + from_a, steps_a[outer], (const float *)b->data + from_b, steps_b[outer]);
    to += count;
  } while (om_next(out->shape, outer, at));
}

#define BINARY(name, expression)                                                                              \
  static void name##_row(float *to, int32_t count, const float *a, int32_t sa, const float *b, int32_t sb) {  \
    for (int32_t i = 0; i < count; i++) {                                                                     \
      const float x = a[i * sa], y = b[i * sb];                                                               \
      to[i] = (expression);                                                                                   \
    }                                                                                                         \
  }                                                                                                           \
  void om_##name(om_in out, om_in a, om_in b) { by_rows(out, a, b, name##_row); }

/* The rest of a division that was rounded down: it has the sign of the divisor. */
static float floored_rest(float x, float y) {
  float rest = fmodf(x, y);
  if (rest == 0.0f) return copysignf(0.0f, y);
  return (y < 0.0f) != (rest < 0.0f) ? rest + y : rest;
}

static float floored(float x, float y) {
  float quotient, down;
  if (y == 0.0f) return x / y;
  quotient = (x - floored_rest(x, y)) / y;
  if (quotient == 0.0f) return copysignf(0.0f, x / y);
  down = floorf(quotient);
  return quotient - down > 0.5f ? down + 1.0f : down;
}

BINARY(add, x + y)
BINARY(subtract, x - y)
BINARY(multiply, x *y)
BINARY(divide, x / y)
BINARY(power, (float)pow((double)x, (double)y))
BINARY(floor_mod, floored_rest(x, y))
BINARY(mod, fmodf(x, y))
BINARY(floor_divide, floored(x, y))
BINARY(maximum, larger(x, y))
BINARY(minimum, smaller(x, y))
BINARY(prelu, x < 0.0f ? x * y : x)
BINARY(equal, x == y ? 1.0f : 0.0f)
BINARY(not_equal, x != y ? 1.0f : 0.0f)
BINARY(less, x < y ? 1.0f : 0.0f)
BINARY(less_equal, x <= y ? 1.0f : 0.0f)
BINARY(greater, x > y ? 1.0f : 0.0f)
BINARY(greater_equal, x >= y ? 1.0f : 0.0f)
BINARY(logical_and, x != 0.0f && y != 0.0f ? 1.0f : 0.0f)
BINARY(logical_or, x != 0.0f || y != 0.0f ? 1.0f : 0.0f)
BINARY(logical_xor, (x != 0.0f) != (y != 0.0f) ? 1.0f : 0.0f)

void om_select(om_in out, om_in condition, om_in a, om_in b) {
  int32_t at[OM_RANK] = {0}, steps[3][OM_RANK];
  const om_in operands[3] = {condition, a, b};
  float *to = out->data;
  for (int i = 0; i < 3; i++) om_steps(operands[i], out, steps[i]);
  do {
    int32_t from[3] = {0, 0, 0};
    for (int i = 0; i < 3; i++) {
      for (int32_t axis = 0; axis < out->rank; axis++) from[i] += at[axis] * steps[i][axis];
    }
    *to++ = ((const float *)condition->data)[from[0]] != 0.0f ? ((const float *)a->data)[from[1]]
                                                              : ((const float *)b->data)[from[2]];
  } while (om_next(out->shape, out->rank, at));
}
