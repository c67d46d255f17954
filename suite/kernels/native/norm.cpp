// Batch norm with what follows it, an addition and ReLU: one pass to find the statistics, one to apply them. Plain C
// ABI; (images, channels, size) in and out, size >= 16; statistics are summed about a pivot, in double over images.
#include <omp.h>
#include <cmath>
#include <vector>
#include "vector.h"

namespace {

constexpr long NEAR = 1024;  // floats of one image that are read in sequence, of several channels if they are small

// Results beyond the caches' size are written past them: what they would drive out is sooner read again.
constexpr long LARGE = 4 << 20;  // floats

inline void put(float* p, Vector v, long lanes, bool past) {
  past ? stream(p, v) : store_part(p, v, lanes);
}

struct Sums {
  Vector a, b;
};

// f(floats from the start of x, place of the mask word, channel, lanes) for the vectors of some channels of one image.
struct Shape {
  long images, channels, size, words, group;
  long ahead;  // the same place of the next image: another page, which the hardware does not fetch in time
  Shape(long images, long channels, long size)
      : images(images), channels(channels), size(size), words((size + W - 1) / W),
        group(std::clamp(NEAR / size, 1L, channels)), ahead(images > 1 ? channels * size : 0) {}
  bool past(const void* to) const {
    return images * channels * size >= LARGE && size % W == 0 && reinterpret_cast<uintptr_t>(to) % 64 == 0;
  }
  template <class F> void each(long image, long first, long last, F f) const {
    for (long c = first; c < last; c++) {
      const long plane = image * channels + c, from = plane * size, word = plane * words;
      long v = 0;
      for (; v < size / W; v++) f(from + v * W, word + v, c, W);
      if (v < words) f(from + v * W, word + v, c, size - v * W);
    }
  }
};

// Lane k counts if bit k is set.
inline Vector only(Vector v, uint16_t bits) {
#ifdef __AVX512F__
  return _mm512_maskz_mov_ps(bits, v);
#else
  const Lanes set = (Lanes{} + bits) & Lanes{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 1 << 14, 1 << 15};
  return (Vector)((Lanes)v & (Lanes)(set != 0));
#endif
}
// The lanes that ReLU lets pass: NaN passes, as in torch.
inline uint16_t positive(Vector v) {
#ifdef __AVX512F__
  return _mm512_cmp_ps_mask(v, zero(), _CMP_NLE_US);
#else
  const Lanes set = ~(Lanes)(v <= zero());
  uint16_t bits = 0;
  for (int i = 0; i < W; i++) bits |= static_cast<uint16_t>((set[i] & 1) << i);
  return bits;
#endif
}
inline Vector all_of(Vector v, long lanes) { return lanes == W ? v : only(v, static_cast<uint16_t>((1 << lanes) - 1)); }

// mean and variance (biased) of each channel of a group.
void statistics(const Shape& s, const float* x, long first, long last, float* mean, float* var) {
  const long n = last - first;
  std::vector<double> a(n), b(n);
  std::vector<float> pivot(n);
  std::vector<Sums> part(n);
  for (long c = first; c < last; c++) pivot[c - first] = x[c * s.size];
  for (long i = 0; i < s.images; i++) {
    std::fill(part.begin(), part.end(), Sums{zero(), zero()});
    s.each(i, first, last, [&](long at, long, long c, long lanes) __attribute__((always_inline)) {
      __builtin_prefetch(x + at + s.ahead);
      const Vector d = all_of(load_part(x + at, lanes) - all(pivot[c - first]), lanes);
      part[c - first].a += d, part[c - first].b += d * d;
    });
    for (long k = 0; k < n; k++) a[k] += sum(part[k].a), b[k] += sum(part[k].b);
  }
  const double count = static_cast<double>(s.images) * s.size;
  for (long k = 0; k < n; k++) {
    const double m = a[k] / count;
    mean[first + k] = static_cast<float>(pivot[k] + m);
    var[first + k] = static_cast<float>(std::max(0.0, b[k] / count - m * m));
  }
}

}  // namespace

extern "C" {

// y = relu((x - mean) / sqrt(var + eps) * weight + bias + other). With `train`, mean and var are found first, else they are given.
// bits, where ReLU lets pass, and other may be null; without bits there is no ReLU.
void norm_forward(const float* x, const float* other, long images, long channels, long size, const float* weight,
                  const float* bias, double eps, int train, float* mean, float* var, float* y, uint16_t* bits,
                  int threads) {
  const Shape s(images, channels, size);
  const bool past = s.past(y);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (long first = 0; first < channels; first += s.group) {
    const long last = std::min(channels, first + s.group);
    if (train) statistics(s, x, first, last, mean, var);
    std::vector<float> scale(last - first);
    for (long c = first; c < last; c++) scale[c - first] = static_cast<float>(weight[c] / std::sqrt(var[c] + eps));
    for (long i = 0; i < images; i++)
      s.each(i, first, last, [&](long at, long word, long c, long lanes) __attribute__((always_inline)) {
        __builtin_prefetch(x + at + s.ahead);
        if (other) __builtin_prefetch(other + at + s.ahead);
        Vector v = (load_part(x + at, lanes) - all(mean[c])) * all(scale[c - first]) + all(bias[c]);
        if (other) v += load_part(other + at, lanes);
        if (bits) v = only(v, bits[word] = positive(v));
        put(y + at, v, lanes, past);
      });
  }
}

// Gradients of x (dx), of weight and bias, and, if `other` is not null, of what was added.
void norm_backward(const float* x, const uint16_t* bits, const float* grad, long images, long channels, long size,
                   const float* weight, const float* mean, const float* var, double eps, int train, float* dx,
                   float* other, float* weight_grad, float* bias_grad, int threads) {
  const Shape s(images, channels, size);
  const double count = static_cast<double>(images) * size;
  const bool past = s.past(dx) && s.past(other);  // null: nothing is written
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (long first = 0; first < channels; first += s.group) {
    const long last = std::min(channels, first + s.group), n = last - first;
    std::vector<double> a(n), b(n);
    std::vector<Sums> part(n);
    for (long i = 0; i < images; i++) {
      std::fill(part.begin(), part.end(), Sums{zero(), zero()});
      s.each(i, first, last, [&](long at, long word, long c, long lanes) __attribute__((always_inline)) {
        __builtin_prefetch(x + at + s.ahead), __builtin_prefetch(grad + at + s.ahead);
        Vector g = load_part(grad + at, lanes);
        if (bits) g = only(g, bits[word]);
        part[c - first].a += g, part[c - first].b += g * all_of(load_part(x + at, lanes) - all(mean[c]), lanes);
      });
      for (long k = 0; k < n; k++) a[k] += sum(part[k].a), b[k] += sum(part[k].b);
    }
    std::vector<float> scale(n), slope(n), start(n);
    for (long k = 0; k < n; k++) {
      const double inverse = 1 / std::sqrt(var[first + k] + eps);
      bias_grad[first + k] = static_cast<float>(a[k]), weight_grad[first + k] = static_cast<float>(b[k] * inverse);
      scale[k] = static_cast<float>(weight[first + k] * inverse);
      slope[k] = train ? static_cast<float>(-scale[k] * b[k] * inverse * inverse / count) : 0;
      start[k] = train ? static_cast<float>(-scale[k] * a[k] / count) : 0;
    }
    if (!dx && !other) continue;
    for (long i = 0; i < images; i++)
      s.each(i, first, last, [&](long at, long word, long c, long lanes) __attribute__((always_inline)) {
        __builtin_prefetch(x + at + s.ahead), __builtin_prefetch(grad + at + s.ahead);
        Vector g = load_part(grad + at, lanes);
        if (bits) g = only(g, bits[word]);
        if (other) put(other + at, g, lanes, past);
        if (!dx) return;
        const long k = c - first;
        const Vector d = load_part(x + at, lanes) - all(mean[c]);
        put(dx + at, g * all(scale[k]) + d * all(slope[k]) + all(start[k]), lanes, past);
      });
  }
}
}
