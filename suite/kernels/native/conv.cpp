// Convolutions on a sparse support: the passes of forward and input gradient. Plain C ABI; arithmetic in fp32.
//
// A tile of the source of 16 images is staged with its halo into the L2 cache, a vector for each pixel, so that an
// active weight is an offset into it and a value. Activations are plain, (N, C, H, W), or blocked,
// (ceil(N / 16), C, H, W, 16).
#include <omp.h>
#include "conv_work.h"

namespace {

thread_local Scratch scratch_tile, scratch_part;
thread_local Map map_source;

// sums[i, j] += value * pixel (i, j) of x.
template <int R, int B>
inline __attribute__((always_inline)) void add(const float* x, long row, float value, Vector* sums) {
  const Vector v = all(value);
  UNROLL for (int i = 0; i < R; i++, x += row) {
    x = fixed(x);
    UNROLL for (int j = 0; j < B; j++) sums[i * B + j] += v * load(x + j * W);
  }
}
// The same over the weights k .. end - 1.
template <int R, int B>
inline __attribute__((always_inline)) void add_all(const float* x, long row, const int32_t* offset, const float* values,
                                                   int32_t k, int32_t end, Vector* sums) {
  if (R * B < 8) {  // two chains of additions hide their latency
    Vector odd[R * B] = {};
    for (; k + 1 < end; k += 2) {
      add<R, B>(x + offset[k], row, values[k], sums);
      add<R, B>(x + offset[k + 1], row, values[k + 1], odd);
    }
    UNROLL for (int q = 0; q < R * B; q++) sums[q] += odd[q];
  }
  for (; k < end; k++) add<R, B>(x + offset[k], row, values[k], sums);
}

// 16 floats of each image from 16 vectors. A whole line goes around the cache: images lie a power of two apart, in the
// same cache sets, where they would drive each other out.
__attribute__((noinline)) void put_images(float* y, Vector* pixels, long images, long image) {
  transpose(pixels);
#ifdef __AVX512F__
  if (reinterpret_cast<uintptr_t>(y) % 64 == 0 && image % W == 0) {
    for (long n = 0; n < images; n++) _mm512_stream_ps(y + n * image, pixels[n]);
    return;
  }
#endif
  for (long n = 0; n < images; n++) store(y + n * image, pixels[n]);
}
inline void images_done() {
#ifdef __AVX512F__
  _mm_sfence();
#endif
}

// A piece of a pass. With chunks, their sums of one block of results for all outputs lie side by side in a scratch, and
// what the block reads of a chunk stays in the L1 cache.
template <int R, int B>
void run_piece(const Work& w, const Piece& t, const float* tile, const float* values, const float* bias, float* y,
               bool blocked) {
  const Pass& p = w.p;
  const long row = Staging(p).row(), plane = p.to_height * p.to_width, unit = blocked ? W : 1;
  float* sums = p.chunks > 1 ? scratch_part.get((t.last - t.first) * R * B * W) : nullptr;
  y += t.block * W * p.outputs * plane;
  const auto block = [&](long r, long c, long out_rows, long out_cols, long chunk, long o)
                         __attribute__((always_inline)) {
    const int32_t k = p.ptr[chunk * p.outputs + o], end = p.ptr[chunk * p.outputs + o + 1];
    const bool last = chunk == p.chunks - 1;
    if (k == end && chunk && !last) return;
    float* part = sums + (o - t.first) * R * B * W;
    Vector a[R * B];
    const Vector start = all(bias ? bias[o] : 0.0f);
    UNROLL for (int q = 0; q < R * B; q++) a[q] = chunk ? load(part + q * W) : start;
    add_all<R, B>(tile + r * row + c * W, row, p.offset, values, k, end, a);
    const long down = p.step_h * p.to_width, i = t.row + r, j = t.col + c;
    float* to = y + (o * plane + p.top * p.to_width + i * down + p.left + j * p.step_w) * unit;
    if (!last) {
      UNROLL for (int q = 0; q < R * B; q++) store(part + q * W, a[q]);
    } else if (R * B == W && !blocked) {
      Vector copy[W];  // so that a itself may stay in registers
      UNROLL for (int q = 0; q < R * B; q++) copy[q] = a[q];
      put_images(to, copy, t.images, p.outputs * plane);
    } else {
      UNROLL for (int q = 0; q < R * B; q++)
        if (q / B >= out_rows && q % B >= out_cols) store(to + (q / B * down + q % B * p.step_w) * W, a[q]);
    }
  };
  if (p.chunks == 1)
    for (long o = t.first; o < t.last; o++)
      each_block<R, B>(p, t, [&](long r, long c, long h, long v) { block(r, c, h, v, 0, o); });
  else
    each_block<R, B>(p, t, [&](long r, long c, long h, long v) {
      for (long chunk = 0; chunk < p.chunks; chunk++)
        for (long o = t.first; o < t.last; o++) block(r, c, h, v, chunk, o);
    });
  if (!blocked) images_done();
}

}  // namespace

extern "C" {

// Whether a pass can write plain results: its blocks are whole, 16 results in sequence; else they are blocked.
int conv_plain(const Pass* p) {
  const bool rows = p->block_rows == 1 || p->to_width == p->block_cols;
  return p->block_rows * p->block_cols == W && rows && p->step_h == 1 && p->step_w == 1 &&
         p->rows % p->block_rows == 0 && p->cols % p->block_cols == 0;
}

// One pass over x, written to y where the pass says; bias may be null. ordered: room for the values of the pass.
void conv_run(const Pass* pass, const float* x, long images, int blocked, const float* values, float* ordered,
              const float* bias, float* y, int y_blocked, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const Pass& p = *pass;
    const Work w(p, images, omp_get_num_threads());
#pragma omp for schedule(static)
    for (long k = 0; k < p.entries; k++) ordered[k] = values[p.slot[k]];
    float* tile = scratch_tile.get(p.channels * Staging(p).channel());
#pragma omp for schedule(dynamic)
    for (long index = 0; index < w.pieces(); index++) {
      const Piece t(w, index);
      map_source.draw(p, t.row, t.col);
      stage(p, map_source, x + t.block * W * p.channels * p.height * p.width, 0, p.channels, t.images, blocked, tile);
      by_shape(p, [&](auto R, auto B) { run_piece<R, B>(w, t, tile, ordered, bias, y, y_blocked); });
    }
  }
}

// Blocked to plain results; size: floats of an image.
void conv_unblock(const float* x, long images, long size, float* y, int threads) {
#pragma omp parallel num_threads(threads)
  {
#pragma omp for collapse(2) schedule(static)
    for (long b = 0; b < images; b += W)
      for (long k = 0; k < size; k += W) {
        const long n = std::min(W, size - k), present = std::min(W, images - b);
        Vector r[W];
        for (long i = 0; i < W; i++) r[i] = i < n ? load(x + (b / W * size + k + i) * W) : zero();
        if (n == W) {
          put_images(y + b * size + k, r, present, size);
          continue;
        }
        transpose(r);
        for (long i = 0; i < present; i++) store_part(y + (b + i) * size + k, r[i], n);
      }
    images_done();
  }
}
}
