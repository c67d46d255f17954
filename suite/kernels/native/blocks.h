// Linear layers whose support comes in blocks: `height` outputs in sequence read the same inputs, so that what is loaded
// of an input serves all of them. Rows of a pattern are then groups of outputs with one index for each block. Values are
// in the order of the mask: value k of row q of a group of n blocks lies q * n places behind value k of its first row.
#pragma once
#include <type_traits>
#include "vector.h"

namespace {

#ifdef __AVX512F__
constexpr int TALLEST = 8, HELD = 16;  // rows taken together, vectors of sums in registers
#else
constexpr int TALLEST = 4, HELD = 4;
#endif

// Whether the rows of each group of `height` have the same columns.
bool alike(long outputs, long height, const int32_t* rowptr, const int32_t* col) {
  if (outputs % height || !rowptr[outputs]) return false;
  for (long o = 0; o < outputs; o++) {
    const int32_t *first = col + rowptr[o / height * height], *row = col + rowptr[o];
    const long n = rowptr[o + 1] - rowptr[o];
    if (n != rowptr[o / height * height + 1] - rowptr[o / height * height] || !std::equal(row, row + n, first))
      return false;
  }
  return true;
}

// A vector that serves all rows: GCC would load it again for each.
inline __attribute__((always_inline)) Vector loaded(const float* p) {
  Vector v = load(p);
#ifdef __AVX512F__
  asm("" : "+v"(v));
#endif
  return v;
}

// Some rows of a group: their first output, their entries `from` .. `from` + n - 1 of the index, and their values.
struct Rows {
  long output, from, n, value;
  Rows(const int32_t* ptr, long height, long group, long row)
      : output(group * height + row), from(ptr[group]), n(ptr[group + 1] - from), value(from * height + row * n) {}
};

// f<R>(rows) for the groups first .. last - 1, at most TALLEST rows at a time.
template <class F> void each_rows(const int32_t* ptr, long height, long first, long last, F f) {
  const auto all = [&](auto R) {
    for (long g = first; g < last; g++)
      for (long row = 0; row < height; row += R) f(R, Rows(ptr, height, g, row));
  };
  if (height == 2) all(std::integral_constant<int, 2>());
  else if (height == 4) all(std::integral_constant<int, 4>());
  else all(std::integral_constant<int, TALLEST>());
}
// f<N>(b) for N vectors of samples from b on, as long as there are so many, then for N / 2 and so on.
template <int N, class F> inline __attribute__((always_inline)) void each_samples(long samples, F f, long b = 0) {
  for (; samples - b >= N * W; b += N * W) f(std::integral_constant<int, N>(), b);
  if constexpr (N > 1) each_samples<N / 2>(samples, f, b);
}

// y[q] = bias[q] + sum over k of values[q][k] x[index[k]] for R rows and N vectors of samples.
template <int R, int N>
void multiply_block(const float* x, long ld, const int32_t* index, const float* values, long n, const float* bias,
                    float* y) {
  Vector sums[R][N];
  for (int q = 0; q < R; q++)
    for (int v = 0; v < N; v++) sums[q][v] = all(bias ? bias[q] : 0.0f);
  for (long k = 0; k < n; k++) {
    Vector a[N];
    for (int v = 0; v < N; v++) a[v] = loaded(x + index[k] * ld + v * W);
    for (int q = 0; q < R; q++) {
      const Vector w = all(values[q * n + k]);
      for (int v = 0; v < N; v++) sums[q][v] += w * a[v];
    }
  }
  for (int q = 0; q < R; q++)
    for (int v = 0; v < N; v++) store(y + q * ld + v * W, sums[q][v]);
}
void multiply_blocks(const float* x, long ld, const int32_t* ptr, const int32_t* index, long height, long first,
                     long last, const float* values, const float* bias, float* y) {
  each_rows(ptr, height, first, last, [&](auto R, const Rows& r) {
    each_samples<HELD / R>(ld, [&](auto N, long b) {
      multiply_block<R, N>(x + b, ld, index + r.from, values + r.value, r.n, bias ? bias + r.output : nullptr,
                           y + r.output * ld + b);
    });
  });
}

// dx[index[k]] += sum over q of values[q][k] d[q] for R rows and N vectors of samples.
template <int R, int N>
void spread_block(const float* d, long ld, const int32_t* index, const float* values, long n, float* dx) {
  Vector g[R][N];
  for (int q = 0; q < R; q++)
    for (int v = 0; v < N; v++) g[q][v] = loaded(d + q * ld + v * W);
  for (long k = 0; k < n; k++) {
    float* to = dx + index[k] * ld;
    Vector a[N];
    for (int v = 0; v < N; v++) a[v] = load(to + v * W);
    for (int q = 0; q < R; q++) {
      const Vector w = all(values[q * n + k]);
      for (int v = 0; v < N; v++) a[v] += w * g[q][v];
    }
    for (int v = 0; v < N; v++) store(to + v * W, a[v]);
  }
}
// The whole dx of a thread's own samples: all groups add to all of it. (Threads that share the rows of one dx, each with
// samples of its own, drive each other's lines out of the caches: slower than the transpose.)
void spread_blocks(const float* d, long ld, const int32_t* ptr, const int32_t* index, long height, long groups,
                   const float* values, float* dx, long inputs) {
  std::fill(dx, dx + inputs * ld, 0.0f);
  each_rows(ptr, height, 0, groups, [&](auto R, const Rows& r) {
    each_samples<HELD / R>(ld, [&](auto N, long b) {
      spread_block<R, N>(d + r.output * ld + b, ld, index + r.from, values + r.value, r.n, dx + b);
    });
  });
}

// grad[q][k] (+)= the dot product over samples of d[q] and x[index[k]] for R rows, 16 of them at a time.
template <int R>
void dots_block(const float* x, const float* d, long ld, const int32_t* index, long n, float* grad, bool add) {
  constexpr int SIDE = W / R, J = HELD / R;  // columns of 16 products, and of those in registers
  for (long k = 0; k < n; k += SIDE) {
    Vector part[W];
    for (int s = 0; s < SIDE; s += J) {
      const float* a[J];
      for (int j = 0; j < J; j++) a[j] = x + index[std::min(k + s + j, n - 1)] * ld;
      Vector sums[R][J] = {};
      for (long b = 0; b < ld; b += W) {
        Vector in[J];
        for (int j = 0; j < J; j++) in[j] = loaded(a[j] + b);
        for (int q = 0; q < R; q++) {
          const Vector g = loaded(d + q * ld + b);
          for (int j = 0; j < J; j++) sums[q][j] += g * in[j];
        }
      }
      for (int q = 0; q < R; q++)
        for (int j = 0; j < J; j++) part[q * SIDE + s + j] = sums[q][j];
    }
    const Vector total = sums(part);
    for (int q = 0; q < R; q++)
      for (long j = 0; j < std::min<long>(SIDE, n - k); j++) {
        float& to = grad[q * n + k + j];
        to = (add ? to : 0.0f) + total[q * SIDE + j];
      }
  }
}
void dots_blocks(const float* x, const float* d, long ld, const int32_t* ptr, const int32_t* index, long height,
                 long first, long last, float* grad, float* bias_grad, bool add) {
  each_rows(ptr, height, first, last, [&](auto R, const Rows& r) {
    dots_block<R>(x, d + r.output * ld, ld, index + r.from, r.n, grad + r.value, add);
    for (long o = r.output; bias_grad && o < r.output + R; o++) {
      Vector s = zero();
      for (long b = 0; b < ld; b += W) s += load(d + o * ld + b);
      bias_grad[o] = (add ? bias_grad[o] : 0.0f) + sum(s);
    }
  });
}

}  // namespace
