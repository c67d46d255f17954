// Passes of sparse convolution and the staging of their source: shared by the kernels (conv.cpp) and the plans
// (conv_plan.cpp).
#pragma once
#include <vector>
#include "vector.h"

// One correlation with a sparse kernel. The forward of a layer is one pass; its input gradient is one pass for each
// phase of the stride, over the output gradient.
struct Pass {
  // The source: `channels` planes of height x width pixels.
  long channels, height, width;
  // The results: for each output a grid of rows x cols. Result (i, j) reads, for the tap (y, x), the source at
  // (i * stride_h + y - pad_h, j * stride_w + x - pad_w), which is zero outside; a padding may be negative.
  long outputs, rows, cols, taps_h, taps_w, stride_h, stride_w, pad_h, pad_w;
  // The destination: `outputs` planes of to_height x to_width; result (i, j) goes to
  // (top + i * step_h, left + j * step_w).
  long to_height, to_width, top, left, step_h, step_w;
  // How it is run: the results of a staged tile, those held in registers at once, and source channels taken together.
  long tile_rows, tile_cols, block_rows, block_cols, chunk, chunks;
  // The active weights by (chunk, output): those of row chunk * outputs + output are ptr[row] .. ptr[row + 1] - 1, each
  // with its offset in the staged tile and its slot, the place among the layer's values.
  long entries;
  int32_t *ptr, *offset, *slot;
};

// Blocks of results, rows x columns, that the kernels hold in registers: 16 vectors of AVX-512, or what 8 to 16 smaller
// registers hold. The last one fits any grid.
#ifdef __AVX512F__
#define CONV_SHAPES(X) X(1, 16) X(2, 8) X(4, 4) X(1, 8) X(2, 4) X(1, 4) X(2, 2) X(1, 2) X(1, 1)
#else
#define CONV_SHAPES(X) X(1, 4) X(2, 2) X(1, 2) X(1, 1)
#endif

namespace {

inline long ratio_up(long a, long b) { return (a + b - 1) / b; }

// A channel of a staged tile has a plane for each phase of the stride that a tap reads, so that neighbouring results
// read neighbouring pixels whatever the stride is. A pixel is 16 floats, one for each image.
struct Staging {
  long planes_h, planes_w, rows, cols;
  explicit Staging(const Pass& p)
      : planes_h(std::min(p.stride_h, p.taps_h)), planes_w(std::min(p.stride_w, p.taps_w)),
        rows(p.tile_rows - 1 + ratio_up(p.taps_h, p.stride_h)),
        cols(p.tile_cols - 1 + ratio_up(p.taps_w, p.stride_w)) {}
  long pixels() const { return planes_h * planes_w * rows * cols; }
  long channel() const { return (pixels() | 1) * W; }  // odd: channels must not meet in the same cache sets
  long row() const { return cols * W; }
  long at(long phase_h, long phase_w, long r, long c) const {
    return (((phase_h * planes_w + phase_w) * rows + r) * cols + c) * W;
  }
};

// Which source pixels a tile takes, and where to; the same for all channels and images.
struct Map {
  struct Run {  // up to 16 source pixels in sequence
    long from, n;
    int32_t to[W];  // -1: not wanted
  };
  std::vector<Run> runs;
  std::vector<int32_t> blank, box;

  // The tile whose first result is (i, j).
  void draw(const Pass& p, long i, long j) {
    const Staging s(p);
    const long y0 = i * p.stride_h - p.pad_h, x0 = j * p.stride_w - p.pad_w;
    const long top = std::clamp(y0, 0L, p.height);
    long left = std::clamp(x0, 0L, p.width);
    const long bottom = std::clamp(y0 + (s.rows - 1) * p.stride_h + s.planes_h, top, p.height);
    long right = std::clamp(x0 + (s.cols - 1) * p.stride_w + s.planes_w, left, p.width);
    const long lines = bottom - top;
    if (ratio_up(lines * p.width, W) <= lines * ratio_up(right - left, W)) left = 0, right = p.width;
    box.assign(lines * (right - left), -1);
    blank.clear();
    for (long a = 0; a < s.planes_h; a++)
      for (long b = 0; b < s.planes_w; b++)
        for (long r = 0; r < s.rows; r++)
          for (long c = 0; c < s.cols; c++) {
            const long y = y0 + r * p.stride_h + a, x = x0 + c * p.stride_w + b;
            const int32_t place = static_cast<int32_t>(s.at(a, b, r, c));
            if (y < top || y >= bottom || x < left || x >= right) blank.push_back(place);
            else box[(y - top) * (right - left) + x - left] = place;
          }
    runs.clear();
    const bool whole = right - left == p.width;  // then the lines follow each other
    const long all = whole ? lines > 0 : lines, length = whole ? box.size() : right - left;
    for (long l = 0; l < all; l++)
      add_runs((top + l) * p.width + left, box.data() + l * length, length, p.height * p.width);
  }

 private:
  // 16 pixels each if the plane has them, rather than a part of a vector: the last ones begin earlier.
  void add_runs(long from, const int32_t* to, long length, long plane) {
    for (long k = 0; k < length; k += W) {
      const long start = std::max(0L, std::min(from + k, plane - W));
      Run run{start, std::min(W, plane - start), {}};
      bool wanted = false;
      for (long i = 0; i < W; i++) {
        const long j = start + i - from;
        run.to[i] = j >= k && j < length ? to[j] : -1;
        wanted |= run.to[i] >= 0;
      }
      if (wanted) runs.push_back(run);
    }
  }
};

// Channels first .. last - 1 of one block of images -> the staged tile. x is the block's first float: plain
// (16, C, H, W) with `images` of the 16 present, or blocked (C, H, W, 16).
inline void stage(const Pass& p, const Map& map, const float* x, long first, long last, long images, bool blocked,
                  float* tile) {
  const long pixels = p.height * p.width, image = p.channels * pixels, channel = Staging(p).channel();
  for (long c = first; c < last; c++, tile += channel) {
    const long ahead = c + 1 < last ? pixels * (blocked ? W : 1) : 0;  // the next channel: too far for the hardware
    for (const int32_t place : map.blank) store(tile + place, zero());
    for (const Map::Run& run : map.runs) {
      const float* from = x + (c * pixels + run.from) * (blocked ? W : 1);
      if (blocked) {
        for (long i = 0; i < run.n; i++) {
          __builtin_prefetch(from + i * W + ahead);
          if (run.to[i] >= 0) store(tile + run.to[i], load(from + i * W));
        }
      } else {
        Vector r[W];
        for (long i = 0; i < images; i++) __builtin_prefetch(from + i * image + ahead);
        for (long i = 0; i < W; i++) r[i] = i < images ? load_part(from + i * image, run.n) : zero();
        transpose(r);
        for (long i = 0; i < run.n; i++)
          if (run.to[i] >= 0) store(tile + run.to[i], r[i]);
      }
    }
  }
}

}  // namespace
