/* Windows over images, and products of matrices: of floats and of int8. See om_ops.h. */
#include <math.h>
#include <string.h>

#include "om_ops.h"

/* Sums to int8 --------------------------------------------------------------------------------- */

static int8_t rounded(int64_t sum, const struct om_rounding *rounding) {
  /* A tie that was rounded up to an odd number lacks all lower bits. */
  if (rounding->half_even && rounding->shift > 0) sum -= sum >> rounding->shift & 1;
  sum >>= rounding->shift;
  return (int8_t)(sum < rounding->low ? rounding->low : sum > rounding->high ? rounding->high : sum);
}

/* A layer's end: `at` is the element of the result, `channel` that of its bias. */
static int8_t finished(int32_t sum, om_in bias, int32_t channel, om_in residual, int32_t at,
                       const struct om_rounding *rounding) {
  int64_t total = (int64_t)sum + ((const int32_t *)bias->data)[channel];
  if (residual != NULL) total += (int64_t)((const int8_t *)residual->data)[at] * ((int64_t)1 << rounding->residual);
  return rounded(total, rounding);
}

/* x * 2**left for what is rounded next, half a step added. */
static int8_t shifted(int64_t x, int32_t left, const struct om_rounding *rounding) {
  struct om_rounding right = *rounding;
  right.shift = left < 0 ? -left : 0;
  return rounded(left < 0 ? x + ((int64_t)1 << (right.shift - 1)) : x * ((int64_t)1 << left), &right);
}

void om_requantize(om_in out, om_in x, int32_t left, const struct om_rounding *rounding) {
  const int32_t count = om_elements(out);
  for (int32_t i = 0; i < count; i++) {
    ((int8_t *)out->data)[i] = shifted(((const int8_t *)x->data)[i], left, rounding);
  }
}

void om_int_add(om_in out, om_in a, om_in b, int32_t left_a, int32_t left_b, const struct om_rounding *rounding) {
  const int32_t count = om_elements(out);
  for (int32_t i = 0; i < count; i++) {
    const int64_t first = (int64_t)((const int8_t *)a->data)[i] * ((int64_t)1 << left_a);
    const int64_t second = (int64_t)((const int8_t *)b->data)[i] * ((int64_t)1 << left_b);
    ((int8_t *)out->data)[i] = shifted(first + second, -rounding->shift, rounding);
  }
}

void om_to_int8(om_in out, om_in x, int32_t exponent) {
  const int32_t count = om_elements(out);
  for (int32_t i = 0; i < count; i++) {
    const double number = rint(ldexp((double)((const float *)x->data)[i], -exponent));
    ((int8_t *)out->data)[i] = (int8_t)(number >= 127.0 ? 127 : number >= -128.0 ? (int)number : -128);
  }
}

void om_to_float(om_in out, om_in x, int32_t exponent) {
  const int32_t count = om_elements(out);
  const float step = ldexpf(1.0f, exponent);
  for (int32_t i = 0; i < count; i++) ((float *)out->data)[i] = (float)((const int8_t *)x->data)[i] * step;
}

/* Products of matrices -------------------------------------------------------------------------- */

/* Where matrix number `at` of a tensor that is broadcast to `out` begins, in elements. */
static ptrdiff_t matrix(om_in x, om_in out, const int32_t *at) {
  int32_t steps[OM_RANK];
  ptrdiff_t begin = 0;
  om_steps(x, out, steps);
  for (int32_t axis = 0; axis < out->rank - 2; axis++) begin += (ptrdiff_t)at[axis] * steps[axis];
  return begin;
}

void om_matmul(om_in out, om_in a, om_in b, int turned) {
  const int32_t rows = out->shape[out->rank - 2], columns = out->shape[out->rank - 1], inner = a->shape[a->rank - 1];
  const ptrdiff_t step = turned ? 1 : columns, next = turned ? inner : 1;
  int32_t at[OM_RANK] = {0};
  float *to = out->data;
  do {
    const float *left = (const float *)a->data + matrix(a, out, at);
    const float *right = (const float *)b->data + matrix(b, out, at);
    for (int32_t row = 0; row < rows; row++) {
      for (int32_t column = 0; column < columns; column++) {
        const float *x = left + (ptrdiff_t)row * inner, *y = right + column * next;
        double sum = 0.0;
        for (int32_t i = 0; i < inner; i++) sum += (double)x[i] * (double)y[i * step];
        *to++ = (float)sum;
      }
    }
  } while (om_next(out->shape, out->rank - 2, at));
}

void om_int_matmul(om_in out, om_in a, om_in b, om_in bias, om_in residual, const struct om_rounding *rounding) {
  const int32_t rows = out->shape[out->rank - 2], columns = out->shape[out->rank - 1], inner = a->shape[a->rank - 1];
  int32_t at[OM_RANK] = {0}, place = 0;
  do {
    const int8_t *left = (const int8_t *)a->data + matrix(a, out, at);
    const int8_t *right = (const int8_t *)b->data + matrix(b, out, at);
    for (int32_t row = 0; row < rows; row++) {
      for (int32_t column = 0; column < columns; column++, place++) {
        const int8_t *x = left + (ptrdiff_t)row * inner, *y = right + (ptrdiff_t)column * inner;
        int32_t sum = 0;
        for (int32_t i = 0; i < inner; i++) sum += x[i] * y[i];
        ((int8_t *)out->data)[place] = finished(sum, bias, column, residual, place, rounding);
      }
    }
  } while (om_next(out->shape, out->rank - 2, at));
}

/* Windows --------------------------------------------------------------------------------------- */

/* Element (n, c, h, w) of an image. */
static int32_t pixel(om_in x, int32_t n, int32_t c, int32_t h, int32_t w) {
  return ((n * x->shape[1] + c) * x->shape[2] + h) * x->shape[3] + w;
}

/* The taps of a window that lie in an axis of `size`, from `begin` to `end` - 1; `first`: where tap 0 lies. */
static void taps(int32_t first, int32_t size, int32_t count, int32_t apart, int32_t *begin, int32_t *end) {
  *begin = first < 0 ? (-first + apart - 1) / apart : 0;
  *end = first >= size ? 0 : (size - first + apart - 1) / apart;
  if (*end > count) *end = count;
}

/* Run a statement for every element of the result (n, k, i, j) in order, its number being `place`. */
#define FOR_PIXELS(out)                                      \
  for (int32_t n = 0, place = 0; n < (out)->shape[0]; n++)   \
    for (int32_t k = 0; k < (out)->shape[1]; k++)            \
      for (int32_t i = 0; i < (out)->shape[2]; i++)          \
        for (int32_t j = 0; j < (out)->shape[3]; j++, place++)

/* And for every tap (r, s) of the window there that lies in the image: at (h, w). */
#define FOR_TAPS(x, window)                                                                                       \
  for (int32_t h0 = i * (window)->strides[0] - (window)->top, w0 = j * (window)->strides[1] - (window)->left,     \
               r = 0, r1 = 0, s0 = 0, s1 = 0, h = 0, w = 0, once = 1;                                             \
       once; once = 0)                                                                                            \
    for (taps(h0, (x)->shape[2], (window)->size[0], (window)->dilation[0], &r, &r1),                              \
         taps(w0, (x)->shape[3], (window)->size[1], (window)->dilation[1], &s0, &s1);                             \
         r < r1; r++)                                                                                             \
      for (int32_t s = s0; h = h0 + r * (window)->dilation[0], w = w0 + s * (window)->dilation[1], s < s1; s++)

#define CONVOLUTION(name, type, sum_type, wide, store)                                                              \
  {                                                                                                                 \
    const int32_t inputs = weight->shape[1], outputs = out->shape[1] / window->groups;                              \
    FOR_PIXELS(out) {                                                                                               \
      const type *kernel = (const type *)weight->data + (ptrdiff_t)k * inputs * window->size[0] * window->size[1];  \
      sum_type sum = 0;                                                                                             \
      for (int32_t c = 0; c < inputs; c++) {                                                                        \
        const type *image = (const type *)x->data + pixel(x, n, k / outputs * inputs + c, 0, 0);                    \
        const type *line = kernel + (ptrdiff_t)c * window->size[0] * window->size[1];                               \
        FOR_TAPS(x, window)                                                                                         \
        sum += (wide)image[h * x->shape[3] + w] * (wide)line[r * window->size[1] + s];                              \
      }                                                                                                             \
      store;                                                                                                        \
    }                                                                                                               \
  }

void om_conv2d(om_in out, om_in x, om_in weight, const struct om_window *window)
    CONVOLUTION(conv2d, float, double, double, ((float *)out->data)[place] = (float)sum)

void om_int_conv2d(om_in out, om_in x, om_in weight, om_in bias, om_in residual, const struct om_window *window,
                   const struct om_rounding *rounding)
    CONVOLUTION(int_conv2d, int8_t, int32_t, int32_t,
                ((int8_t *)out->data)[place] = finished(sum, bias, k, residual, place, rounding))

/* The input that a tap of a transposed convolution reaches an output from; -1 if none. */
static int32_t source(int32_t from, int32_t stride, int32_t size) {
  return from < 0 || from % stride != 0 || from / stride >= size ? -1 : from / stride;
}

#define TRANSPOSED(type, sum_type, wide, store)                                                                    \
  {                                                                                                                \
    const int32_t outputs = weight->shape[1], inputs = x->shape[1] / window->groups;                               \
    const int32_t area = window->size[0] * window->size[1];                                                        \
    FOR_PIXELS(out) {                                                                                              \
      sum_type sum = 0;                                                                                            \
      for (int32_t r = 0; r < window->size[0]; r++) {                                                              \
        const int32_t h = source(i + window->top - r * window->dilation[0], window->strides[0], x->shape[2]);      \
        for (int32_t s = 0; h >= 0 && s < window->size[1]; s++) {                                                  \
          const int32_t w = source(j + window->left - s * window->dilation[1], window->strides[1], x->shape[3]);   \
          for (int32_t c = 0; w >= 0 && c < inputs; c++) {                                                         \
            const int32_t channel = k / outputs * inputs + c;                                                      \
            const int32_t tap = (channel * outputs + k % outputs) * area + r * window->size[1] + s;                \
            sum += (wide)((const type *)x->data)[pixel(x, n, channel, h, w)] *                                     \
                   (wide)((const type *)weight->data)[tap];                                                        \
          }                                                                                                        \
        }                                                                                                          \
      }                                                                                                            \
      store;                                                                                                       \
    }                                                                                                              \
  }

void om_conv2d_transpose(om_in out, om_in x, om_in weight, const struct om_window *window)
    TRANSPOSED(float, double, double, ((float *)out->data)[place] = (float)sum)

void om_int_conv2d_transpose(om_in out, om_in x, om_in weight, om_in bias, om_in residual,
                             const struct om_window *window, const struct om_rounding *rounding)
    TRANSPOSED(int8_t, int32_t, int32_t,
               ((int8_t *)out->data)[place] = finished(sum, bias, k, residual, place, rounding))

void om_max_pool2d(om_in out, om_in x, const struct om_window *window) {
  FOR_PIXELS(out) {
    float most = -HUGE_VALF;
    FOR_TAPS(x, window) {
      const float found = ((const float *)x->data)[pixel(x, n, k, h, w)];
      if (found > most || found != found) most = found;
    }
    ((float *)out->data)[place] = most;
  }
}

void om_max_pool2d_int8(om_in out, om_in x, const struct om_window *window) {
  FOR_PIXELS(out) {
    int8_t most = INT8_MIN;
    FOR_TAPS(x, window) {
      const int8_t found = ((const int8_t *)x->data)[pixel(x, n, k, h, w)];
      if (found > most) most = found;
    }
    ((int8_t *)out->data)[place] = most;
  }
}

void om_avg_pool2d(om_in out, om_in x, om_in divisors, const struct om_window *window) {
  FOR_PIXELS(out) {
    float sum = 0.0f;
    FOR_TAPS(x, window) sum += ((const float *)x->data)[pixel(x, n, k, h, w)];
    ((float *)out->data)[place] = sum / ((const float *)divisors->data)[i * out->shape[3] + j];
  }
}

/* A quotient rounded down; the divisor is above 0. */
static int64_t floored(int64_t x, int64_t y) { return x >= 0 ? x / y : -((-x + y - 1) / y); }

void om_int_avg_pool2d(om_in out, om_in x, om_in divisors, int32_t left, const struct om_window *window,
                       const struct om_rounding *rounding) {
  FOR_PIXELS(out) {
    const int64_t divisor = (int64_t)((const int32_t *)divisors->data)[i * out->shape[3] + j] << (left < 0 ? -left : 0);
    int64_t sum = 0, doubled, result;
    FOR_TAPS(x, window) sum += ((const int8_t *)x->data)[pixel(x, n, k, h, w)];
    doubled = 2 * (sum * ((int64_t)1 << (left > 0 ? left : 0))) + divisor;
    result = floored(doubled, 2 * divisor);
    if (rounding->half_even && doubled == 2 * divisor * result && result % 2 != 0) result--;
    result = result < rounding->low ? rounding->low : result > rounding->high ? rounding->high : result;
    ((int8_t *)out->data)[place] = (int8_t)result;
  }
}

void om_adaptive_avg_pool2d(om_in out, om_in x) {
  FOR_PIXELS(out) {
    const int32_t h0 = i * x->shape[2] / out->shape[2], w0 = j * x->shape[3] / out->shape[3];
    const int32_t h1 = ((i + 1) * x->shape[2] + out->shape[2] - 1) / out->shape[2];
    const int32_t w1 = ((j + 1) * x->shape[3] + out->shape[3] - 1) / out->shape[3];
    double sum = 0.0;
    for (int32_t h = h0; h < h1; h++) {
      for (int32_t w = w0; w < w1; w++) sum += (double)((const float *)x->data)[pixel(x, n, k, h, w)];
    }
    ((float *)out->data)[place] = (float)(sum / (double)((h1 - h0) * (w1 - w0)));
  }
}

void om_patches(om_in out, om_in x, const struct om_window *window) {
  const int32_t area = window->size[0] * window->size[1];
  memset(out->data, 0, (size_t)om_elements(out));
  FOR_PIXELS(out) {
    const int32_t h = i * window->strides[0] - window->top + k % area / window->size[1] * window->dilation[0];
    const int32_t w = j * window->strides[1] - window->left + k % window->size[1] * window->dilation[1];
    if (h < 0 || h >= x->shape[2] || w < 0 || w >= x->shape[3]) continue;
    ((int8_t *)out->data)[place] = ((const int8_t *)x->data)[pixel(x, n, k / area, h, w)];
  }
}
