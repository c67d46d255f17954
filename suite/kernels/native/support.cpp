// Between a dense tensor and the vector of its entries on a support, a bool mask of n bytes. Plain C ABI.
#include <omp.h>
#include <vector>
#include "vector.h"

namespace {

// f(k) for the entries from first to last - 1, most of which are not there; a bool is a byte, 0 or 1.
template <class F> inline void each_entry(const uint8_t* mask, long first, long last, F f) {
  long k = first;
  for (; k + 8 <= last; k += 8) {
    uint64_t eight;
    std::memcpy(&eight, mask + k, 8);
    for (; eight; eight &= eight - 1) f(k + __builtin_ctzll(eight) / 8);  // little-endian: the first byte is the lowest
  }
  for (; k < last; k++)
    if (mask[k]) f(k);
}

// f(first, last, entries before first) for the share of each thread.
template <class F> void shares(const uint8_t* mask, long n, int threads, F f) {
  std::vector<long> before(threads + 1);
#pragma omp parallel num_threads(threads)
  {
    const long t = omp_get_thread_num(), all = omp_get_num_threads(), first = n * t / all, last = n * (t + 1) / all;
    long count = 0;
    for (long k = first; k < last; k++) count += mask[k] != 0;
    before[t + 1] = count;
#pragma omp barrier
    long start = 0;
    for (long i = 0; i <= t; i++) start += before[i];
    f(first, last, start);
  }
}

}  // namespace

extern "C" {

void support_gather(const uint8_t* mask, long n, const float* dense, float* values, int threads) {
  shares(mask, n, threads, [&](long first, long last, long at) {
    each_entry(mask, first, last, [&](long k) { values[at++] = dense[k]; });
  });
}

// dense becomes `kept`, or zero where that is null, with the values on the support.
void support_scatter(const uint8_t* mask, long n, const float* values, const float* kept, float* dense, int threads) {
  shares(mask, n, threads, [&](long first, long last, long at) {
    if (kept) std::copy(kept + first, kept + last, dense + first);
    else std::fill(dense + first, dense + last, 0.0f);
    each_entry(mask, first, last, [&](long k) { dense[k] = values[at++]; });
  });
}
}
