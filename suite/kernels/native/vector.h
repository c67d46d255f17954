// Vectors of 16 floats by the compiler's extension: one register with AVX-512, two with AVX2, four with NEON.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr long W = 16;  // floats of a vector
#ifdef __AVX512F__
constexpr int WIDE = 8;  // vectors that a kernel keeps in registers
#else
constexpr int WIDE = 4;
#endif

typedef float Vector __attribute__((vector_size(64)));
typedef float Anywhere __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Lanes __attribute__((vector_size(64)));

inline Vector load(const float* p) { return *reinterpret_cast<const Anywhere*>(p); }
inline void store(float* p, Vector v) { *reinterpret_cast<Anywhere*>(p) = v; }
inline Vector zero() { return Vector{}; }
inline Vector all(float x) { return x - Vector{}; }

// The first n of 16 floats; nothing is read behind them.
inline Vector load_part(const float* p, long n) {
  if (n >= W) return load(p);
#ifdef __AVX512F__
  return _mm512_maskz_loadu_ps(static_cast<uint16_t>((1 << n) - 1), p);
#else
  alignas(64) float part[W] = {};
  for (long i = 0; i < n; i++) part[i] = p[i];
  return load(part);
#endif
}
inline void store_part(float* p, Vector v, long n) {
  if (n >= W) return store(p, v);
#ifdef __AVX512F__
  _mm512_mask_storeu_ps(p, static_cast<uint16_t>((1 << n) - 1), v);
#else
  alignas(64) float part[W];
  store(part, v);
  for (long i = 0; i < n; i++) p[i] = part[i];
#endif
}
// Where the processor can, past the caches, which need not read the line first; p at a multiple of 64 bytes. The atomic
// operations at the end of a parallel region put it before what follows.
inline void stream(float* p, Vector v) {
#ifdef __AVX512F__
  _mm512_stream_ps(p, v);
#else
  store(p, v);
#endif
}

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else  // before version 12, GCC had this one alone
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Lanes{__VA_ARGS__})
#endif
// The blocks of S lanes of a and b in turn: the even ones of both, and the odd ones.
template <int S, int... L>
inline __attribute__((always_inline)) Vector low(Vector a, Vector b, std::integer_sequence<int, L...>) {
  return SHUFFLE(a, b, (L & S ? int(W) + L - S : L)...);
}
template <int S, int... L>
inline __attribute__((always_inline)) Vector high(Vector a, Vector b, std::integer_sequence<int, L...>) {
  return SHUFFLE(a, b, (L & S ? int(W) + L : L + S)...);
}
constexpr std::make_integer_sequence<int, W> LANES{};

// Swap the off-diagonal blocks of S x S lanes between rows i and i + S.
template <int S> inline __attribute__((always_inline)) void swap_blocks(Vector* r) {
  for (int i = 0; i < W; i++)
    if (!(i & S)) {
      const Vector a = r[i], b = r[i + S];
      r[i] = low<S>(a, b, LANES);
      r[i + S] = high<S>(a, b, LANES);
    }
}
inline __attribute__((always_inline)) void transpose(Vector r[W]) {
  swap_blocks<8>(r);
  swap_blocks<4>(r);
  swap_blocks<2>(r);
  swap_blocks<1>(r);
}
// Rows i and i + S are halved in length and share row i from then on.
template <int S> inline __attribute__((always_inline)) void merge(Vector* r) {
  for (int i = 0; i < S; i++) r[i] = low<S>(r[i], r[i + S], LANES) + high<S>(r[i], r[i + S], LANES);
}
// Lane k of the result is the sum over the lanes of r[k].
inline __attribute__((always_inline)) Vector sums(Vector r[W]) {
  merge<8>(r);
  merge<4>(r);
  merge<2>(r);
  merge<1>(r);
  return r[0];
}
inline float sum(Vector v) {
  float total = 0;
  for (int i = 0; i < W; i++) total += v[i];
  return total;
}

// Memory of one thread that grows and is never given back while the thread lives.
struct Scratch {
  float* place = nullptr;
  size_t size = 0;
  float* get(size_t floats) {
    if (floats > size) {
      std::free(place);
      size = (floats + 1023) / 1024 * 1024;
      place = static_cast<float*>(std::aligned_alloc(4096, size * sizeof(float)));
      if (!place) std::abort();
    }
    return place;
  }
  ~Scratch() { std::free(place); }
};

}  // namespace
