// Linear layers on a sparse support: forward, input gradient, weight gradient. Plain C ABI; arithmetic in fp32.
//
// Inside, activations are transposed, [features][ld] with ld a multiple of 16 and samples beyond the batch zero, so that
// every stored weight multiplies whole vectors of samples. A pattern is CSR (rowptr, col) with its transpose (colptr,
// row) and `slot`, the place of each entry of the transpose in CSR order. With height > 1, rowptr and col are those of
// groups of that many outputs (blocks.h); the transpose is the same.
#include <omp.h>
#include "blocks.h"
#include "gelu.h"

namespace {

thread_local Scratch scratch_x, scratch_y, scratch_d;

struct Pattern {
  long outputs, inputs, height;
  const int32_t *rowptr, *col, *colptr, *row, *slot;
  long rows() const { return outputs / height; }
  long entries() const { return rowptr[rows()] * height; }
};

// y[o] = bias[o] + sum over k of values[k] x[col[k]] for the outputs first .. last - 1 and N vectors of samples.
template <int N>
void multiply(const float* x, long ldx, long first, long last, const int32_t* ptr, const int32_t* index,
              const float* values, const float* bias, float* y, long ldy) {
  for (long o = first; o < last; o++) {
    Vector even[N], odd[N];
    for (int v = 0; v < N; v++) even[v] = all(bias ? bias[o] : 0.0f), odd[v] = zero();
    int32_t k = ptr[o];
    const int32_t end = ptr[o + 1];
    if (N <= WIDE / 2)  // two chains of additions hide their latency
      for (; k + 1 < end; k += 2) {
        const float *a = x + index[k] * ldx, *b = x + index[k + 1] * ldx;
        const Vector p = all(values[k]), q = all(values[k + 1]);
        for (int v = 0; v < N; v++) even[v] += p * load(a + v * W), odd[v] += q * load(b + v * W);
      }
    for (; k < end; k++) {
      const float* a = x + index[k] * ldx;
      const Vector p = all(values[k]);
      for (int v = 0; v < N; v++) even[v] += p * load(a + v * W);
    }
    for (int v = 0; v < N; v++) store(y + o * ldy + v * W, even[v] + odd[v]);
  }
}

// grad[k] (+)= the dot product over samples of d[o] and x[col[k]]; bias_grad[o] (+)= the sum of d[o].
template <int N>
void dots(const float* x, long ldx, const float* d, long ldd, long first, long last, const int32_t* ptr,
          const int32_t* index, float* grad, float* bias_grad, bool add) {
  for (long o = first; o < last; o++) {
    Vector g[N];
    for (int v = 0; v < N; v++) g[v] = load(d + o * ldd + v * W);
    if (bias_grad) {
      Vector s = g[0];
      for (int v = 1; v < N; v++) s += g[v];
      bias_grad[o] = (add ? bias_grad[o] : 0.0f) + sum(s);
    }
    for (int32_t k = ptr[o]; k < ptr[o + 1]; k += W) {
      const long n = std::min<long>(W, ptr[o + 1] - k);
      Vector part[W];
      for (long j = 0; j < W; j++) {
        part[j] = zero();
        if (j >= n) continue;
        const float* a = x + index[k + j] * ldx;
        Vector even = g[0] * load(a), odd = zero();
        for (int v = 1; v < N; v++) (v & 1 ? odd : even) += g[v] * load(a + v * W);
        part[j] = even + odd;
      }
      Vector total = sums(part);
      if (add) total += load_part(grad + k, n);
      store_part(grad + k, total, n);
    }
  }
}

// Call f<N> for the N whole vectors of `samples`, at most WIDE at a time.
#define BY_VECTORS(samples, f, ...)                    \
  switch ((samples) / W) {                             \
    case 1: f<1>(__VA_ARGS__); break;                  \
    case 2: f<2>(__VA_ARGS__); break;                  \
    case 3: f<3>(__VA_ARGS__); break;                  \
    case 4: f<4>(__VA_ARGS__); break;                  \
    case 5: f<(WIDE > 4 ? 5 : 1)>(__VA_ARGS__); break; \
    case 6: f<(WIDE > 4 ? 6 : 1)>(__VA_ARGS__); break; \
    case 7: f<(WIDE > 4 ? 7 : 1)>(__VA_ARGS__); break; \
    case 8: f<(WIDE > 4 ? 8 : 1)>(__VA_ARGS__); break; \
  }

void multiply_all(const float* x, long ldx, long samples, long first, long last, const int32_t* ptr,
                  const int32_t* index, const float* values, const float* bias, float* y, long ldy) {
  for (long b = 0; b < samples; b += WIDE * W) {
    const long n = std::min(WIDE * W, samples - b);
    BY_VECTORS(n, multiply, x + b, ldx, first, last, ptr, index, values, bias, y + b, ldy)
  }
}

void dots_all(const float* x, long ldx, const float* d, long ldd, long samples, long first, long last,
              const int32_t* ptr, const int32_t* index, float* grad, float* bias_grad, bool add) {
  for (long b = 0; b < samples; b += WIDE * W) {
    const long n = std::min(WIDE * W, samples - b);
    BY_VECTORS(n, dots, x + b, ldx, d + b, ldd, first, last, ptr, index, grad, bias_grad, add || b)
  }
}

// The outputs of the rows first .. last - 1.
void forward(const Pattern& p, const float* x, long ld, long first, long last, const float* values, const float* bias,
             float* y) {
  if (p.height > 1) multiply_blocks(x, ld, p.rowptr, p.col, p.height, first, last, values, bias, y);
  else multiply_all(x, ld, ld, first, last, p.rowptr, p.col, values, bias, y, ld);
}
// (+)= the gradients of their values and bias.
void weight_grad(const Pattern& p, const float* x, const float* d, long ld, long first, long last, float* grad,
                 float* bias_grad, bool add) {
  if (p.height > 1) dots_blocks(x, d, ld, p.rowptr, p.col, p.height, first, last, grad, bias_grad, add);
  else dots_all(x, ld, d, ld, ld, first, last, p.rowptr, p.col, grad, bias_grad, add);
}

// The first row of part t of T, balanced by entries and rows.
long share(const int32_t* ptr, long rows, int t, int T) {
  const double want = (ptr[rows] + 4.0 * rows) * t / T;
  long low = 0, high = rows;
  while (low < high) {
    const long middle = (low + high) / 2;
    if (ptr[middle] + 4.0 * middle < want) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Rows b .. b + n - 1 of x, (.., features) of that stride, transposed to [features][ld]; zero from sample n on. 16 rows at a
// time are read along, and the 16 behind them, also of the next block, are fetched.
void pack_block(const float* x, long stride, long n, long features, float* out, long ld) {
  for (long b = 0; b < ld; b += W)
    for (long c = 0; c < features; c += W) {
      const long m = std::min(W, features - c);
      Vector r[W];
      for (long i = 0; i < W; i++) {
        __builtin_prefetch(x + (b + i + W) * stride + c, 0, 2);
        r[i] = b + i < n ? load_part(x + (b + i) * stride + c, m) : zero();
      }
      transpose(r);
      for (long i = 0; i < m; i++) store(out + (c + i) * ld + b, r[i]);
    }
}
void unpack_block(const float* x, long ld, long n, long features, float* out, long stride) {
  const bool lines = stride % W == 0 && reinterpret_cast<uintptr_t>(out) % 64 == 0;
  for (long b = 0; b < n; b += W)
    for (long c = 0; c < features; c += W) {
      const long m = std::min(W, features - c), rows = std::min(W, n - b);
      Vector r[W];
      for (long i = 0; i < W; i++) r[i] = i < m ? load(x + (c + i) * ld + b) : zero();
      transpose(r);
      float* to = out + b * stride + c;
      if (lines && m == W)
        for (long i = 0; i < rows; i++) stream(to + i * stride, r[i]);
      else
        for (long i = 0; i < rows; i++) store_part(to + i * stride, r[i], m);
    }
}

// GELU of what is packed, and, if wanted, its derivative times a gradient.
void activate(float* x, float* grad, long size) {
  for (long i = 0; i < size; i += W) {
    const Gelu g = gelu(load(x + i));
    store(x + i, g.value);
    if (grad) store(grad + i, load(grad + i) * g.slope);
  }
}

long whole(long samples) { return (samples + W - 1) / W * W; }

}  // namespace

extern "C" {

// mask, (outputs, inputs) bytes -> a pattern; returns its height: the largest of 8, 4 and 2, up to `tallest`, whose groups
// have one support, or 1. col, row and slot have room for all entries.
int pattern_build(const uint8_t* mask, long outputs, long inputs, int tallest, int32_t* rowptr, int32_t* col,
                  int32_t* colptr, int32_t* row, int32_t* slot) {
  int32_t k = 0;
  std::fill(colptr, colptr + inputs + 1, 0);
  for (long o = 0; o < outputs; o++) {
    rowptr[o] = k;
    for (long i = 0; i < inputs; i++)
      if (mask[o * inputs + i]) col[k++] = static_cast<int32_t>(i), colptr[i + 1]++;
  }
  rowptr[outputs] = k;
  for (long i = 0; i < inputs; i++) colptr[i + 1] += colptr[i];
  for (long o = 0; o < outputs; o++)
    for (int32_t j = rowptr[o]; j < rowptr[o + 1]; j++) {
      const int32_t place = colptr[col[j]]++;  // ends one column ahead, set right below
      row[place] = static_cast<int32_t>(o), slot[place] = j;
    }
  for (long i = inputs; i > 0; i--) colptr[i] = colptr[i - 1];
  colptr[0] = 0;
  for (int height = 8; height > 1; height /= 2)
    if (height <= tallest && alike(outputs, height, rowptr, col)) {
      for (long g = 0; g < outputs / height; g++) {
        const int32_t from = rowptr[g * height], n = rowptr[g * height + 1] - from;
        std::copy_n(col + from, n, col + from / height);  // never ahead of what it reads
        rowptr[g] = from / height;
      }
      rowptr[outputs / height] = k / height;
      return height;
    }
  return 1;
}

// x, (samples, features) -> out, [features][ld].
void pack(const float* x, long samples, long features, long stride, float* out, long ld, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long c = 0; c < features; c += W)
    for (long b = 0; b < ld; b += W) {
      const long m = std::min(W, features - c);
      Vector r[W];
      for (long i = 0; i < W; i++) r[i] = b + i < samples ? load_part(x + (b + i) * stride + c, m) : zero();
      transpose(r);
      for (long i = 0; i < m; i++) store(out + (c + i) * ld + b, r[i]);
    }
}

// One batch, transposed in and out.
void linear_forward(const float* x, long ld, const Pattern* p, const float* values, const float* bias, float* y,
                    int threads) {
#pragma omp parallel num_threads(threads)
  {
    const int t = omp_get_thread_num(), T = omp_get_num_threads();
    forward(*p, x, ld, share(p->rowptr, p->rows(), t, T), share(p->rowptr, p->rows(), t + 1, T), values, bias, y);
  }
}

// dx, values_grad and bias_grad may be null; turned: room for the values in the order of the transpose.
void linear_backward(const float* x, const float* d, long ld, const Pattern* p, const float* values, float* turned,
                     float* dx, float* values_grad, float* bias_grad, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const int t = omp_get_thread_num(), T = omp_get_num_threads();
    if (dx) {
      const long first = share(p->colptr, p->inputs, t, T), last = share(p->colptr, p->inputs, t + 1, T);
      for (int32_t k = p->colptr[first]; k < p->colptr[last]; k++) turned[k] = values[p->slot[k]];
      multiply_all(d, ld, ld, first, last, p->colptr, p->row, turned, nullptr, dx, ld);
    }
    if (values_grad || bias_grad)
      weight_grad(*p, x, d, ld, share(p->rowptr, p->rows(), t, T), share(p->rowptr, p->rows(), t + 1, T), values_grad,
                  bias_grad, false);
  }
}

// Many samples, row-major in and out, block by block of `block` samples (a multiple of 16) through each thread's cache.
// With `act`, the layer reads GELU(x).
void linear_forward_rows(const float* x, long samples, const Pattern* p, const float* values, const float* bias,
                         float* y, long block, int act, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long b = 0; b < samples; b += block) {
    const long n = std::min(block, samples - b), ld = whole(n);
    float *in = scratch_x.get(p->inputs * ld), *out = scratch_y.get(p->outputs * ld);
    pack_block(x + b * p->inputs, p->inputs, n, p->inputs, in, ld);
    if (act) activate(in, nullptr, p->inputs * ld);
    forward(*p, in, ld, 0, p->rows(), values, bias, out);
    unpack_block(out, ld, n, p->outputs, y + b * p->outputs, p->outputs);
  }
}

// turned: the values in the order of the transpose, or as they are with height > 1.
// sums: room for threads x (entries + outputs) floats.
void linear_backward_rows(const float* x, const float* d, long samples, const Pattern* p, const float* turned,
                          float* dx, float* values_grad, float* bias_grad, float* sums, long block, int act,
                          int threads) {
  const long entries = p->entries(), size = entries + p->outputs;
#pragma omp parallel num_threads(threads)
  {
    float *mine = sums + omp_get_thread_num() * size, *mine_bias = bias_grad ? mine + entries : nullptr;
    std::fill(mine, mine + size, 0.0f);
#pragma omp for schedule(static)
    for (long b = 0; b < samples; b += block) {
      const long n = std::min(block, samples - b), ld = whole(n);
      float *in = scratch_x.get(p->inputs * ld), *out = scratch_y.get(p->inputs * ld);
      float* back = scratch_d.get(p->outputs * ld);
      pack_block(d + b * p->outputs, p->outputs, n, p->outputs, back, ld);
      if (dx) {
        if (p->height > 1)
          spread_blocks(back, ld, p->rowptr, p->col, p->height, p->rows(), turned, out, p->inputs);
        else
          multiply_all(back, ld, ld, 0, p->inputs, p->colptr, p->row, turned, nullptr, out, ld);
      }
      if (act || values_grad || bias_grad) pack_block(x + b * p->inputs, p->inputs, n, p->inputs, in, ld);
      if (act) activate(in, dx ? out : nullptr, p->inputs * ld);
      if (dx) unpack_block(out, ld, n, p->inputs, dx + b * p->inputs, p->inputs);
      if (values_grad || bias_grad) weight_grad(*p, in, back, ld, 0, p->rows(), mine, mine_bias, true);
    }
    const int T = omp_get_num_threads();
    if (values_grad || bias_grad) {
#pragma omp for schedule(static)
      for (long k = 0; k < size; k++) {
        float total = 0;
        for (int t = 0; t < T; t++) total += sums[t * size + k];
        if (k < entries) values_grad[k] = total;
        else if (bias_grad) bias_grad[k - entries] = total;
      }
    }
  }
}

void gather(const float* from, const int32_t* index, long n, float* to, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long k = 0; k < n; k++) to[k] = from[index[k]];
}
}
