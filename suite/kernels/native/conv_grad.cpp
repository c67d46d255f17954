// Convolutions on a sparse support: the gradient of the active weights. Tiles are staged as in conv.cpp.
#include <omp.h>
#include "conv_work.h"

namespace {

thread_local Scratch scratch_tile, scratch_lanes, scratch_grad;
thread_local Map map_source, map_grad;

// lanes[k] (+)= the products of the block d of output gradients and what the weights k .. end - 1 read, image by image.
template <int R, int B>
inline __attribute__((always_inline)) void dots(const float* x, long row, const float* d, long d_row,
                                                const int32_t* offset, int32_t k, int32_t end, float* lanes, bool add) {
  Vector g[R * B];
  UNROLL for (int q = 0; q < R * B; q++) g[q] = load(d + q / B * d_row + q % B * W);
  for (; k < end; k++, lanes += W) {
    const float* a = x + offset[k];
    Vector even = add ? load(lanes) : zero(), odd = zero();
    UNROLL for (int i = 0; i < R; i++, a += row) {
      a = fixed(a);
      UNROLL for (int j = 0; j < B; j++) ((i * B + j) & 1 ? odd : even) += g[i * B + j] * load(a + j * W);
    }
    store(lanes, even + odd);
  }
}
// The same for a block of any size: its pixels that an earlier block had must not be multiplied by zero (Inf, NaN).
__attribute__((noinline)) void dots_some(const float* x, long row, const float* d, long d_row, long rows, long cols,
                                         const int32_t* offset, int32_t k, int32_t end, float* lanes, bool add) {
  for (; k < end; k++, lanes += W) {
    Vector even = add ? load(lanes) : zero(), odd = zero();
    for (long i = 0; i < rows; i++) {
      const float *a = x + offset[k] + i * row, *g = d + i * d_row;
      long j = 0;
      for (; j + 1 < cols; j += 2) {
        even += load(g + j * W) * load(a + j * W);
        odd += load(g + j * W + W) * load(a + j * W + W);
      }
      if (j < cols) even += load(g + j * W) * load(a + j * W);
    }
    store(lanes, even + odd);
  }
}

// total[k] += the sum of the lanes of k, for k < n; `total` has room for 15 more.
void fold(const float* lanes, long n, float* total) {
  for (long k = 0; k < n; k += W) {
    Vector r[W];
    for (long i = 0; i < W; i++) r[i] = k + i < n ? load(lanes + (k + i) * W) : zero();
    store(total + k, load(total + k) + sums(r));
  }
}

// A piece of the gradient of the weights, in the order of the pass. d: the output gradients of the tile, d_row and
// d_plane the distances between its rows and outputs.
template <int R, int B>
void grad_piece(const Pass& p, const Piece& t, const float* tile, const float* d, long d_row, long d_plane,
                float* total) {
  const long row = Staging(p).row();
  const auto block = [&](long r, long c, long h, long v, long o, int32_t k, int32_t end, float* lanes, bool add) {
    const float *x = tile + r * row + c * W, *g = d + (o - t.first) * d_plane + r * d_row + c * W;
    if (!h && !v) dots<R, B>(x, row, g, d_row, p.offset, k, end, lanes, add);
    else dots_some(x + h * row + v * W, row, g + h * d_row + v * W, d_row, R - h, B - v, p.offset, k, end, lanes, add);
  };
  if (p.chunks == 1) {
    for (long o = t.first; o < t.last; o++) {
      const int32_t k = p.ptr[o], end = p.ptr[o + 1];
      if (k == end) continue;
      float* lanes = scratch_lanes.get((end - k) * W);
      bool add = false;
      each_block<R, B>(p, t, [&](long r, long c, long h, long v) {
        block(r, c, h, v, o, k, end, lanes, add);
        add = true;
      });
      fold(lanes, end - k, total + k);
    }
    return;
  }
  each_block<R, B>(p, t, [&](long r, long c, long h, long v) {
    for (long chunk = 0; chunk < p.chunks; chunk++)
      for (long o = t.first; o < t.last; o++) {
        const int32_t k = p.ptr[chunk * p.outputs + o], end = p.ptr[chunk * p.outputs + o + 1];
        if (k == end) continue;
        float* lanes = scratch_lanes.get((end - k) * W);
        block(r, c, h, v, o, k, end, lanes, false);
        fold(lanes, end - k, total + k);
      }
  });
}

}  // namespace

extern "C" {

// The gradient of the values from the input x of a forward pass and its output gradient d.
// sums: room for threads * (entries + 16). The same for the same number of threads.
void conv_grad(const Pass* pass, const float* x, long images, int blocked, const float* d, float* sums, float* grad,
               int threads) {
#pragma omp parallel num_threads(threads)
  {
    const Pass& p = *pass;
    Pass q = p;  // that takes the tile's output gradients as they are
    q.channels = p.outputs, q.height = p.rows, q.width = p.cols;
    q.taps_h = q.taps_w = q.stride_h = q.stride_w = 1, q.pad_h = q.pad_w = 0;
    const long T = omp_get_num_threads(), size = p.entries + W;
    const Work w(p, images, T);
    float *mine = sums + omp_get_thread_num() * size, *tile = scratch_tile.get(p.channels * Staging(p).channel());
    std::fill(mine, mine + size, 0.0f);
#pragma omp for schedule(static)
    for (long index = 0; index < w.pieces(); index++) {
      const Piece t(w, index);
      map_source.draw(p, t.row, t.col);
      stage(p, map_source, x + t.block * W * p.channels * p.height * p.width, 0, p.channels, t.images, blocked, tile);
      const float* from = d + t.block * W * p.outputs * p.rows * p.cols;
      long row = p.cols * W, plane = p.rows * row;
      if (blocked) {
        from += t.first * plane + t.row * row + t.col * W;
      } else {
        row = Staging(q).row(), plane = Staging(q).channel();
        float* staged = scratch_grad.get((t.last - t.first) * plane);
        map_grad.draw(q, t.row, t.col);
        stage(q, map_grad, from, t.first, t.last, t.images, false, staged);
        from = staged;
      }
      by_shape(p, [&](auto R, auto B) { grad_piece<R, B>(p, t, tile, from, row, plane, mine); });
    }
#pragma omp for schedule(static)
    for (long k = 0; k < p.entries; k++) {
      float total = 0;
      for (long i = 0; i < T; i++) total += sums[i * size + k];
      grad[p.slot[k]] = total;
    }
  }
}
}
