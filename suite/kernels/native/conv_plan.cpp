// Plans of sparse convolution: which passes a layer's pattern needs and in which order they take its entries, by
// counting sorts: linear in the size of the mask.
#include <unistd.h>
#include "conv.h"

// A layer at one size of input.
struct Layer {
  long outputs, inputs, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, height, width;
};

namespace {

constexpr int FORWARD = -1;      // else a phase of the input gradient, (row phase) * stride_w + (column phase)
constexpr double ENTRIES = 6;    // of a row of a chunk at least, to be worth the loads and stores of partial sums
constexpr double MANY = 11;      // so many, that a chunk may be small enough to stay in the L1 cache for all outputs
constexpr long NEAR = 56 << 10;  // bytes of the staged tile that a block reads from a chunk: the L1 cache, just about

struct Shape {
  long rows, cols;
};
#define SHAPE(R, B) {R, B},
constexpr Shape SHAPES[] = {CONV_SHAPES(SHAPE)};

long tile_bytes() {
  long cache = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
  cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
  return (cache > 0 ? cache : 1 << 20) / 4 * 3;
}

// One dimension of an input-gradient phase: the taps k = first, first + stride, .. give the pixels phase + i * stride.
struct Phase {
  long taps, last, pad;
  Phase(long kernel, long stride, long padding, long phase) {
    const long first = (phase + padding) % stride;
    taps = first < kernel ? (kernel - 1 - first) / stride + 1 : 0;
    last = first + (taps - 1) * stride;
    pad = taps ? (last - phase - padding) / stride : 0;  // exact
  }
  long tap(long k, long stride) const { return k <= last && (last - k) % stride == 0 ? (last - k) / stride : -1; }
};

// The block of results that fills the grid with the least work; one of few results waits for its additions.
Shape best_shape(long rows, long cols) {
  Shape best{1, 1};
  long least = -1;
  for (const Shape s : SHAPES) {
    if (s.rows > rows || s.cols > cols) continue;
    const long work = ratio_up(rows, s.rows) * ratio_up(cols, s.cols) * std::max(s.rows * s.cols + 3, 8L);
    if (least < 0 || work < least) best = s, least = work;
  }
  return best;
}

long bytes(Pass p, long rows, long cols) {
  p.tile_rows = rows, p.tile_cols = cols;
  return p.channels * Staging(p).channel() * 4;
}

// As many rows as fit, the whole width if one row of blocks does; then equal shares.
void choose_tile(Pass& p) {
  const long R = p.block_rows, B = p.block_cols, limit = tile_bytes();
  long rows = R, cols = p.cols;
  while (cols > B && bytes(p, R, cols) > limit) cols = std::max(B, cols - B);
  while (rows < p.rows && bytes(p, rows + R, cols) <= limit) rows += R;
  const auto share = [](long all, long part, long unit) {
    const long each = ratio_up(all, ratio_up(all, part));
    return std::min(all, ratio_up(each, unit) * unit);
  };
  p.tile_rows = share(p.rows, rows, R), p.tile_cols = share(p.cols, cols, B);
}

void choose_chunk(Pass& p, double entries) {
  Pass one = p;
  one.tile_rows = p.block_rows, one.tile_cols = p.block_cols;
  const long channel = Staging(one).pixels() * W * 4, small = NEAR / 2 / channel / 4 * 4;
  const double each = entries / (p.outputs * p.channels);
  p.chunk = std::clamp(NEAR / channel / 16 * 16, 16L, 64L);
  if (small >= 4 && each * small >= MANY) p.chunk = std::min(p.chunk, small);
  if (p.chunk >= p.channels || each * p.chunk < ENTRIES) p.chunk = p.channels;
  p.chunks = ratio_up(p.channels, p.chunk);
}

}  // namespace

extern "C" {

// mask, (outputs, inputs, taps) bytes -> the output, input and tap of its entries in that order; returns their number.
// With null for `output` they are only counted.
long conv_entries(const uint8_t* mask, long outputs, long inputs, long taps, int32_t* output, int32_t* input,
                  int32_t* tap) {
  const long size = outputs * inputs * taps;
  long n = 0;
  if (!output) {
    for (long k = 0; k < size; k++) n += mask[k] != 0;
    return n;
  }
  for (long k = 0; k < size; k++) {
    uint64_t eight;
    if (k + 8 <= size && (std::memcpy(&eight, mask + k, 8), !eight)) k += 7;  // nothing in the next eight
    else if (mask[k]) {
      output[n] = static_cast<int32_t>(k / (inputs * taps)), input[n] = static_cast<int32_t>(k / taps % inputs);
      tap[n++] = static_cast<int32_t>(k % taps);
    }
  }
  return n;
}

// The geometry of a pass: its arrays need chunks * outputs + 1 places (ptr) and up to `entries` (offset, slot).
// chunk: source channels of a chunk, 0 to choose by density.
void conv_pass(const Layer* l, int phase, long entries, long chunk, Pass* pass) {
  Pass p{};
  const long rows = (l->height + 2 * l->pad_h - l->kernel_h) / l->stride_h + 1;
  const long cols = (l->width + 2 * l->pad_w - l->kernel_w) / l->stride_w + 1;
  double part = 1;
  if (phase == FORWARD) {
    p.channels = l->inputs, p.height = l->height, p.width = l->width;
    p.outputs = l->outputs, p.rows = p.to_height = rows, p.cols = p.to_width = cols;
    p.taps_h = l->kernel_h, p.taps_w = l->kernel_w, p.stride_h = l->stride_h, p.stride_w = l->stride_w;
    p.pad_h = l->pad_h, p.pad_w = l->pad_w, p.step_h = p.step_w = 1;
  } else {
    p.top = phase / l->stride_w, p.left = phase % l->stride_w;
    const Phase h(l->kernel_h, l->stride_h, l->pad_h, p.top), w(l->kernel_w, l->stride_w, l->pad_w, p.left);
    p.channels = l->outputs, p.height = rows, p.width = cols;
    p.outputs = l->inputs, p.to_height = l->height, p.to_width = l->width;
    p.rows = std::max(0L, ratio_up(l->height - p.top, l->stride_h));
    p.cols = std::max(0L, ratio_up(l->width - p.left, l->stride_w));
    p.taps_h = std::max(1L, h.taps), p.taps_w = std::max(1L, w.taps), p.stride_h = p.stride_w = 1;
    p.pad_h = h.pad, p.pad_w = w.pad, p.step_h = l->stride_h, p.step_w = l->stride_w;
    part = static_cast<double>(h.taps * w.taps) / (l->kernel_h * l->kernel_w);
  }
  const Shape shape = best_shape(p.rows, p.cols);
  p.block_rows = shape.rows, p.block_cols = shape.cols;
  if (p.rows && p.cols) choose_tile(p);
  choose_chunk(p, entries * part);
  if (chunk) p.chunk = std::min(chunk, p.channels), p.chunks = ratio_up(p.channels, p.chunk);
  *pass = p;
}

// Sort the entries into the arrays of the pass; returns how many it has.
long conv_sort(const Layer* l, int phase, long entries, const int32_t* output, const int32_t* input,
               const int32_t* tap, Pass* p) {
  const Staging s(*p);
  std::vector<int32_t> offsets(l->kernel_h * l->kernel_w);  // of a tap in a staged channel, -1 in another phase
  for (long y = 0; y < l->kernel_h; y++)
    for (long x = 0; x < l->kernel_w; x++) {
      int32_t& place = offsets[y * l->kernel_w + x];
      if (phase == FORWARD) {
        place = static_cast<int32_t>(s.at(y % p->stride_h, x % p->stride_w, y / p->stride_h, x / p->stride_w));
        continue;
      }
      const long a = Phase(l->kernel_h, l->stride_h, l->pad_h, p->top).tap(y, l->stride_h);
      const long b = Phase(l->kernel_w, l->stride_w, l->pad_w, p->left).tap(x, l->stride_w);
      place = a < 0 || b < 0 ? -1 : static_cast<int32_t>(s.at(0, 0, a, b));
    }
  const int32_t *from = phase == FORWARD ? input : output, *to = phase == FORWARD ? output : input;
  const long rows = p->chunks * p->outputs, chunk = p->chunk, channel = s.channel();
  std::vector<long> starts(p->channels);  // the first row of a channel's chunk
  for (long c = 0; c < p->channels; c++) starts[c] = c / chunk * p->outputs;
  std::fill(p->ptr, p->ptr + rows + 1, 0);
  for (long k = 0; k < entries; k++)
    if (offsets[tap[k]] >= 0) p->ptr[starts[from[k]] + to[k] + 1]++;
  for (long r = 0; r < rows; r++) p->ptr[r + 1] += p->ptr[r];
  for (long k = 0; k < entries; k++)
    if (offsets[tap[k]] >= 0) {
      const int32_t place = p->ptr[starts[from[k]] + to[k]]++;  // ends one row ahead, set right below
      p->offset[place] = static_cast<int32_t>(from[k] * channel + offsets[tap[k]]);
      p->slot[place] = static_cast<int32_t>(k);
    }
  for (long r = rows; r > 0; r--) p->ptr[r] = p->ptr[r - 1];
  p->ptr[0] = 0;
  return p->entries = p->ptr[rows];
}
}
