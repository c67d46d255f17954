// Attention of few tokens: softmax(scale q k') v head by head, everything of a head in the cache. Plain C ABI.
//
// Scores are kept as [keys][queries]: lanes are queries, so that softmax runs down the rows, and what stands in the lanes
// behind the last query is never read.
#include <omp.h>
#include "gelu.h"

namespace {

constexpr int HIGH = WIDE == 8 ? 6 : 3, BROAD = WIDE == 8 ? 4 : 2;  // rows and vectors of a tile that registers hold

// y[i][.] = sum over k < depth of a[i * row + k * step] b[k][.], R rows and V vectors.
template <int R, int V>
void tile(const float* a, long row, long step, const float* b, long ldb, long depth, float* y, long ldy) {
  Vector total[R][V] = {};
  for (long k = 0; k < depth; k++, a += step, b += ldb) {
    Vector line[V];
    for (int v = 0; v < V; v++) line[v] = load(b + v * W);
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) total[r][v] += all(a[r * row]) * line[v];
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) store(y + r * ldy + v * W, total[r][v]);
}
template <int V>
void strip(const float* a, long row, long step, const float* b, long ldb, long depth, long rows, float* y, long ldy) {
  long i = 0;
  for (; i + HIGH <= rows; i += HIGH) tile<HIGH, V>(a + i * row, row, step, b, ldb, depth, y + i * ldy, ldy);
  for (; i < rows; i++) tile<1, V>(a + i * row, row, step, b, ldb, depth, y + i * ldy, ldy);
}
// The same for any number of rows, and columns in multiples of W.
void product(const float* a, long row, long step, const float* b, long ldb, long depth, long rows, long columns,
             float* y, long ldy) {
  long c = 0;
  for (; c + BROAD * W <= columns; c += BROAD * W) strip<BROAD>(a, row, step, b + c, ldb, depth, rows, y + c, ldy);
  for (; c < columns; c += W) strip<1>(a, row, step, b + c, ldb, depth, rows, y + c, ldy);
}

// x, [n][size] of that stride, times a number -> [size][ld], zero from n on.
void turn(const float* x, long stride, long n, long size, float times, float* y, long ld) {
  for (long c = 0; c < size; c += W)
    for (long b = 0; b < ld; b += W) {
      Vector r[W];
      for (long i = 0; i < W; i++) r[i] = b + i < n ? load(x + (b + i) * stride + c) * all(times) : zero();
      transpose(r);
      for (long i = 0; i < W; i++) store(y + (c + i) * ld + b, r[i]);
    }
}

// One head: q, k, v are [n][size] of one stride.
struct Head {
  long n, size, stride, ld;
  const float *q, *k, *v;
  // Where head `place` of (images, n, 3, heads, size) begins.
  static long start(long place, long n, long heads, long size) {
    return place / heads * n * 3 * heads * size + place % heads * size;
  }
  Head(const float* x, long place, long n, long heads, long size)
      : n(n), size(size), stride(3 * heads * size), ld((n + W - 1) / W * W), q(x + start(place, n, heads, size)),
        k(q + heads * size), v(k + heads * size) {}
  // p[key][query] = softmax over keys; room: [size][ld].
  void weights(float scale, float* room, float* p) const {
    turn(q, stride, n, size, scale, room, ld);
    product(k, stride, 1, room, ld, size, n, ld, p, ld);
    for (long c = 0; c < ld; c += W) {
      Vector most = load(p + c), total = zero();
      for (long j = 1; j < n; j++) {
        const Vector s = load(p + j * ld + c);
        most = s > most ? s : most;
      }
      for (long j = 0; j < n; j++) {
        const Vector e = exp(load(p + j * ld + c) - most);
        store(p + j * ld + c, e), total += e;
      }
      const Vector inverse = all(1.0f) / total;
      for (long j = 0; j < n; j++) store(p + j * ld + c, load(p + j * ld + c) * inverse);
    }
  }
};

thread_local Scratch scratch_turned, scratch_weights, scratch_grads;

}  // namespace

extern "C" {

// x, (images, n, 3, heads, size): queries, keys, values -> y, (images, n, heads, size); size a multiple of 16.
void attention_forward(const float* x, long images, long n, long heads, long size, double scale, float* y, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long place = 0; place < images * heads; place++) {
    const Head h(x, place, n, heads, size);
    float* p = scratch_weights.get(n * h.ld);
    h.weights(static_cast<float>(scale), scratch_turned.get(size * h.ld), p);
    product(p, 1, h.ld, h.v, h.stride, n, n, size, y + place / heads * n * heads * size + place % heads * size,
            heads * size);
  }
}

// grad like y, dx like x; the weights are computed again.
void attention_backward(const float* x, const float* grad, long images, long n, long heads, long size, double scale,
                        float* dx, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long place = 0; place < images * heads; place++) {
    const Head h(x, place, n, heads, size);
    float *room = scratch_turned.get(size * h.ld), *p = scratch_weights.get(n * h.ld), *s = scratch_grads.get(n * h.ld);
    h.weights(static_cast<float>(scale), room, p);
    const float* d = grad + place / heads * n * heads * size + place % heads * size;
    float *dq = dx + (h.q - x), *dk = dx + (h.k - x), *dv = dx + (h.v - x);
    product(p, h.ld, 1, d, heads * size, n, n, size, dv, h.stride);
    turn(d, heads * size, n, size, 1, room, h.ld);
    product(h.v, h.stride, 1, room, h.ld, size, n, h.ld, s, h.ld);
    for (long c = 0; c < h.ld; c += W) {
      Vector mean = zero();
      for (long j = 0; j < n; j++) mean += load(p + j * h.ld + c) * load(s + j * h.ld + c);
      for (long j = c; j < n * h.ld; j += h.ld)
        store(s + j, load(p + j) * (load(s + j) - mean) * all(static_cast<float>(scale)));
    }
    product(s, 1, h.ld, h.k, h.stride, n, n, size, dq, h.stride);
    product(s, h.ld, 1, h.q, h.stride, n, n, size, dk, h.stride);
  }
}
}
