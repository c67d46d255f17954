// How the kernels of convolution walk a pass: pieces for the threads, blocks of results for the registers.
#pragma once
#include <numeric>
#include <type_traits>
#include "conv.h"

namespace {

#define UNROLL _Pragma("GCC unroll 16")

// What a call works on, cut into pieces for the threads: a tile of 16 images, for a range of the outputs.
struct Work {
  const Pass& p;
  long images;
  long across, tiles, parts;
  Work(const Pass& p, long images, long threads)
      : p(p), images(images), across(ratio_up(p.cols, p.tile_cols)),
        tiles(across * ratio_up(p.rows, p.tile_rows)) {
    const long whole = ratio_up(images, W) * tiles;
    parts = whole < 4 * threads ? threads / std::gcd(whole, threads) : 1;  // equal work for all threads
  }
  long pieces() const { return ratio_up(images, W) * tiles * parts; }
};

struct Piece {
  long block, images;              // of 16 images, and how many of them there are
  long row, col, new_row, new_col;  // first result of the tile; of those, the first that no tile before it has
  long first, last;                // outputs
  Piece(const Work& w, long index) {
    const long part = index % w.parts, tile = index / w.parts % w.tiles;
    block = index / w.parts / w.tiles;
    images = std::min(W, w.images - block * W);
    const long r = tile / w.across * w.p.tile_rows, c = tile % w.across * w.p.tile_cols;
    row = std::min(r, w.p.rows - w.p.tile_rows), new_row = r - row;  // the last tile is moved back to be whole
    col = std::min(c, w.p.cols - w.p.tile_cols), new_col = c - col;
    first = w.p.outputs * part / w.parts, last = w.p.outputs * (part + 1) / w.parts;
  }
};

// f(row, column, rows and columns to leave out) for each block of R x B results; the last ones are moved back.
template <int R, int B, class F>
inline __attribute__((always_inline)) void each_block(const Pass& p, const Piece& t, F f) {
  for (long i = t.new_row; i < p.tile_rows; i += R)
    for (long j = t.new_col; j < p.tile_cols; j += B) {
      const long r = std::min(i, p.tile_rows - R), c = std::min(j, p.tile_cols - B);
      f(r, c, i - r, j - c);
    }
}

// Pixels are read at fixed distances from here; the compiler would rather add each distance to the loop's base first
// and run out of registers.
inline __attribute__((always_inline)) const float* fixed(const float* x) {
  asm("" : "+r"(x));
  return x;
}

// f(R, B), compile-time constants, for the block shape of the pass.
#define CONV_CASE(R, B) \
  case R * 100 + B: f(std::integral_constant<int, R>(), std::integral_constant<int, B>()); break;
template <class F> void by_shape(const Pass& p, F f) {
  switch (p.block_rows * 100 + p.block_cols) { CONV_SHAPES(CONV_CASE) }
}

}  // namespace
