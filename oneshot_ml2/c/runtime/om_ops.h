/* What the host computes. Results are first, then operands; their shapes are those that the exporter checked.
 *
 * Integers are exact. Real numbers are added in double precision and rounded once; functions are the C library's, of
 * doubles. So they agree on all machines that round as IEEE 754 says, up to the last bit of these functions.
 */
#ifndef OM_OPS_H
#define OM_OPS_H

#include "om_tensor.h"

/* Elementwise, float: om_NAME(out, x). */
#define OM_UNARY(X)                                                                                                    \
  X(relu) X(abs) X(sign) X(floor) X(ceil) X(round) X(trunc) X(sqrt) X(rsqrt) X(square) X(exp) X(log) X(sin) X(cos)     \
  X(tan) X(atan) X(tanh) X(sigmoid) X(gelu) X(gelu_tanh) X(silu) X(softplus) X(erf) X(logical_not) X(isnan) X(isinf)
/* Elementwise with broadcasting, float: om_NAME(out, a, b). */
#define OM_BINARY(X)                                                                                                   \
  X(add) X(subtract) X(multiply) X(divide) X(power) X(floor_mod) X(mod) X(floor_divide) X(maximum) X(minimum)          \
  X(prelu) X(equal) X(not_equal) X(less) X(less_equal) X(greater) X(greater_equal) X(logical_and) X(logical_or)        \
  X(logical_xor)

#define OM_DECLARE_UNARY(name) void om_##name(om_in out, om_in x);
#define OM_DECLARE_BINARY(name) void om_##name(om_in out, om_in a, om_in b);
OM_UNARY(OM_DECLARE_UNARY)
OM_BINARY(OM_DECLARE_BINARY)
#undef OM_DECLARE_UNARY
#undef OM_DECLARE_BINARY

void om_clip(om_in out, om_in x, float low, float high);
/* `a` where the condition is not 0, else `b`. */
void om_select(om_in out, om_in condition, om_in a, om_in b);

/* Moves, of any type. `om_strided`: element (i, j, ...) is the one at offset + i * steps[0] + j * steps[1] + ... */
void om_strided(om_in out, om_in x, int32_t offset, const int32_t *steps);
/* A part of a concatenation, from place `begin` of an axis on. */
void om_concat(om_in out, om_in x, int32_t axis, int32_t begin);
/* `before`: elements in front of x along each axis; `fill`: all others, as bits of an element. */
void om_pad(om_in out, om_in x, const int32_t *before, float fill);
/* `places`: int32, in range. */
void om_gather(om_in out, om_in x, om_in places, int32_t axis);
/* `index`: whole numbers as float; beyond the table its first or last line. */
void om_take(om_in out, om_in x, om_in index, int32_t axis);
void om_take_along(om_in out, om_in x, om_in index, int32_t axis);

/* Reductions, float; `axes`: a bit for each axis of x. */
void om_reduce_sum(om_in out, om_in x, uint32_t axes);
void om_reduce_prod(om_in out, om_in x, uint32_t axes);
void om_reduce_max(om_in out, om_in x, uint32_t axes);
void om_reduce_min(om_in out, om_in x, uint32_t axes);
void om_mean(om_in out, om_in x, uint32_t axes);
void om_variance(om_in out, om_in x, uint32_t axes);
void om_std(om_in out, om_in x, uint32_t axes);
/* (x - mean) / sqrt(mean square + epsilon) over the axes; `centred` 0: without the mean. */
void om_normalize(om_in out, om_in x, uint32_t axes, float epsilon, int centred);
void om_softmax(om_in out, om_in x, int32_t axis);
void om_log_softmax(om_in out, om_in x, int32_t axis);
void om_argmax(om_in out, om_in x, int32_t axis);
void om_argmin(om_in out, om_in x, int32_t axis);
void om_cumsum(om_in out, om_in x, int32_t axis, int exclusive);
/* The largest (or least) of an axis in order, or where they are; of equal ones the first comes first. */
void om_topk_values(om_in out, om_in x, int32_t axis, int largest);
void om_topk_indices(om_in out, om_in x, int32_t axis, int largest);
/* Weighted sums along an axis: of tap t for element i, source sources[t, i] times weights[t, i]. */
void om_resample(om_in out, om_in x, om_in sources, om_in weights, int32_t axis);

/* Windows over (N, C, H, W). */
struct om_window {
  int32_t size[2], strides[2], dilation[2], top, left, groups;
};
void om_conv2d(om_in out, om_in x, om_in weight, const struct om_window *window);
void om_conv2d_transpose(om_in out, om_in x, om_in weight, const struct om_window *window);
void om_max_pool2d(om_in out, om_in x, const struct om_window *window);
void om_max_pool2d_int8(om_in out, om_in x, const struct om_window *window);
/* `divisors`: float (OH, OW). */
void om_avg_pool2d(om_in out, om_in x, om_in divisors, const struct om_window *window);
void om_adaptive_avg_pool2d(om_in out, om_in x);

/* Products of matrices, float, their batches broadcast; `turned`: the rows of b are multiplied, not its columns. */
void om_matmul(om_in out, om_in a, om_in b, int turned);

/* Integers ------------------------------------------------------------------------------------ */

/* Sums to int8: shifted right and clipped; half a step is in the bias already. `half_even`: exact ties go to even
 * numbers. `residual`: by how much what is added to them is shifted left. */
struct om_rounding {
  int32_t shift, low, high, half_even, residual;
};
/* float to int8 and back, real = integer * 2**exponent. */
void om_to_int8(om_in out, om_in x, int32_t exponent);
void om_to_float(om_in out, om_in x, int32_t exponent);
/* x * 2**left, rounded. */
void om_requantize(om_in out, om_in x, int32_t left, const struct om_rounding *rounding);
void om_int_add(om_in out, om_in a, om_in b, int32_t left_a, int32_t left_b, const struct om_rounding *rounding);
/* `turned` products and convolutions; residual may be NULL. */
void om_int_matmul(om_in out, om_in a, om_in b, om_in bias, om_in residual, const struct om_rounding *rounding);
void om_int_conv2d(om_in out, om_in x, om_in weight, om_in bias, om_in residual, const struct om_window *window,
                   const struct om_rounding *rounding);
void om_int_conv2d_transpose(om_in out, om_in x, om_in weight, om_in bias, om_in residual,
                             const struct om_window *window, const struct om_rounding *rounding);
/* `divisors`: int32 (OH, OW); the average times 2**left. */
void om_int_avg_pool2d(om_in out, om_in x, om_in divisors, int32_t left, const struct om_window *window,
                       const struct om_rounding *rounding);
/* Each window as channels, zeros beyond the image. */
void om_patches(om_in out, om_in x, const struct om_window *window);

#endif
